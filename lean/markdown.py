"""Tables, numbers and text as pages and terminals show them. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: bool = False) -> str:
    """A table in Markdown, a line a row, the last without its end.

    `right`: every column but the first is flush right.
    """
    rule = ["---", *["---:" if right else "---"] * (len(columns) - 1)]
    lines = (map(cell, columns), rule, *(map(cell, row) for row in rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Text that stays in its cell and is no markup: a line's end becomes a blank."""
    return plain(text.replace("\n", " ")).replace("|", "\\|").replace("<", "&lt;")


def plain(text: str) -> str:
    """Text a terminal cannot be steered with: '?' for control, surrogate and other unprintable characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def number(value: float) -> str:
    """A number with four significant digits and no exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 9)}f}"


def number_or_dash(value: float | None, factor: float = 1.0) -> str:
    """`number` of `value` times `factor`; a dash for what was not measured."""
    return "-" if value is None else number(value * factor)
