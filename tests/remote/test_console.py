"""Tables of many rows, which rich would take seconds for."""

from __future__ import annotations

import pytest

from remote.console import MANY_ROWS, Console


def test_a_table_of_many_rows_is_plain_lines_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(number, "x" * (number % 7), "end") for number in range(MANY_ROWS + 1)]
    Console().table(("number", "", "last"), rows)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 1
    assert lines[0].split() == ["number", "last"]
    assert {line.rindex("end") for line in lines[1:]} == {lines[0].rindex("last")}


def test_text_of_a_long_table_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table(("a",), [("\x1b]0;owned\x07",)] * (MANY_ROWS + 1))
    assert not set(capsys.readouterr().out) & set("\x1b\x07")


def test_with_json_a_long_table_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Console(as_json=True).table(("a",), [("b",)] * (MANY_ROWS + 1))
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("a\nb\n")
