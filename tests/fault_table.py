"""Writes the tables of docs/reliability.md from a test run: `FAULT_TABLE=docs/reliability.md pytest`.

A test joins a table by `@pytest.mark.fault("<what goes wrong>", "<what it happens to>")` or
`@pytest.mark.security("<what holds>")`. A row counts the tests behind it and how they ended.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

BEGIN, END = "<!-- generated: {} -->", "<!-- end -->"
KINDS = {"fault": ("what goes wrong", "under"), "security": ("what holds",)}


class FaultTable:
    """Collects outcomes by row."""

    def __init__(self, page: Path) -> None:
        self._page = page
        self._rows: dict[str, dict[tuple[str, ...], Counter[str]]] = {
            kind: defaultdict(Counter) for kind in KINDS
        }

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and not (report.when == "setup" and report.outcome != "passed"):
            return
        for kind, *row in getattr(report, "table_rows", []):
            self._rows[kind][tuple(row)][report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        text = self._page.read_text()
        for kind, columns in KINDS.items():
            head, _, rest = text.partition(BEGIN.format(kind))
            tail = rest.partition(END)[2]
            text = head + BEGIN.format(kind) + "\n" + self._table(kind, columns) + END + tail
        self._page.write_text(text)

    def _table(self, kind: str, columns: tuple[str, ...]) -> str:
        lines = ["| " + " | ".join((*columns, "tests")) + " |", "|---" * (len(columns) + 1) + "|"]
        for row, counts in sorted(self._rows[kind].items()):
            told = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
            lines.append("| " + " | ".join((*row, told)) + " |")
        return "\n".join(lines) + "\n"


def rows_of(item: pytest.Item) -> list[list[str]]:
    """The rows a test stands behind, as the report carries them between processes."""
    found = []
    for kind in KINDS:
        for mark in item.iter_markers(kind):
            if kind == "fault":
                fault, works = mark.args
                found += [[kind, fault, work.strip()] for work in _works(item, works)]
            else:
                found.append([kind, *mark.args])
    return found


def _works(item: pytest.Item, works: str) -> list[str]:
    """A test that is run for several kinds of work stands behind the row of its own kind only."""
    callspec: Any = getattr(item, "callspec", None)
    chosen = callspec.params.get("work") if callspec else None
    kind = chosen if isinstance(chosen, str) else (callspec.params.get("kind") if callspec else None)
    return [str(kind).split(" ")[0]] if kind else works.split(",")
