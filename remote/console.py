"""What the user sees: numbered phases, tables, and one result; rich on a terminal, plain lines elsewhere.

With `--json` the result is one JSON document on standard output and everything else goes to standard error.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console as RichConsole


PIPED_WIDTH = 200  # columns of a table that nobody looks at in a window
MANY_ROWS = 500  # rich takes a quarter of a millisecond for a row, and nobody reads 10,000 folded ones


class Console:
    """One per verb. Building it is free; rich is imported when the first line is written."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.answered = False  # whether the result was shown; a failure after it prints no second document
        self._phase = 0
        self._began: float | None = None
        self._rich: RichConsole | None = None

    @property
    def _out(self) -> RichConsole:
        if self._rich is None:
            from rich.console import Console as Rich

            self._rich = Rich(stderr=self.as_json, highlight=False, soft_wrap=True)
            if not self._rich.is_terminal:
                self._rich.width = PIPED_WIDTH
        return self._rich

    def phase(self, title: str) -> None:
        """A numbered step begins; the time since the first one is shown with it."""
        self._phase += 1
        self._began = self._began or time.monotonic()
        since = time.monotonic() - self._began
        self._out.print(f"[bold]\\[{self._phase}][/bold] {_plain(title)} [dim]{since:.0f} s[/dim]")

    def line(self, text: str) -> None:
        """One line of progress, indented below its phase."""
        self._out.print(f"    {_plain(text)}")

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None
    ) -> None:
        """A table; the caller formats numbers. Piped output gets the same table without colour.

        One of many rows is plain lines.
        """
        if len(rows) > MANY_ROWS:
            (sys.stderr if self.as_json else sys.stdout).write(_plain_table(columns, rows))
            return
        from rich import box
        from rich.table import Table

        table = Table(
            title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
        )
        table.show_header = any(columns)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(_plain(str(cell)) for cell in row))
        self._out.print(table)

    def result(self, document: Mapping[str, Any], show: Callable[[], None] | None = None) -> None:
        """The verb's result: the JSON document, or what `show` prints of it for a person."""
        self.answered = True
        if self.as_json:
            print(json.dumps(document, indent=2, sort_keys=True), flush=True)
        elif show:
            show()
        else:
            self.pairs(document)

    def text(self, text: str) -> None:
        """A document of its own, such as CSV: as it is, on standard output."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def pairs(self, document: Mapping[str, Any]) -> None:
        """Two columns, name and value; nested mappings as dotted names, lists as compact JSON."""
        self.table(("", ""), list(_flat(document)))

    def problem(self, text: str) -> None:
        """One line on standard error."""
        print(text, file=sys.stderr, flush=True)


def _flat(document: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in document.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
        elif value is not None:
            yield above + name, value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _plain_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = [tuple(map(str, row)) for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    form = "  ".join(f"%-{width}s" for width in widths)
    return "".join(_printable(form % row).rstrip() + "\n" for row in cells)


def _plain(text: str) -> str:
    """Text from elsewhere (a path, a log line) must not be read as rich's markup or move the cursor."""
    from rich.markup import escape

    return escape(_printable(text))


def _printable(text: str) -> str:
    if text.isprintable():  # nearly always
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def size(count: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
