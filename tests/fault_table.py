"""Writes the tables of docs/reliability.md from a test run: `FAULT_TABLE=docs/reliability.md pytest`.

A test joins a table by `@pytest.mark.fault("<what goes wrong>", "<what it happens to>")` or
`@pytest.mark.security("<what holds>")`. What a fault happens to is the test's parameter `work` or `kind`
where the mark leaves it out. A row counts the tests behind it and how they ended.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

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
        if report.when == "call" or report.outcome != "passed":  # what a test asserts at its end counts too
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
            row = [kind, *mark.args]
            if kind == "fault" and len(mark.args) == 1:
                row.append(_work_of(item))
            found.append(row)
    return found


def _work_of(item: pytest.Item) -> str:
    parameters = item.callspec.params  # type: ignore[attr-defined]
    return str(parameters.get("work") or parameters["kind"]).split(" ")[0]
