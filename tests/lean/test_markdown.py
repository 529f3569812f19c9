"""Tables and numbers of pages."""

from __future__ import annotations

import pytest

from lean.markdown import cell, number, number_or_dash, table


def test_a_table_has_a_line_for_its_head_its_rule_and_each_row() -> None:
    assert table(("a", "b"), [("1", "2"), ("3", "4")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"
    assert table(("a", "b", "c"), [], right=True).endswith("| --- | ---: | ---: |")


def test_text_stays_in_its_cell_and_is_no_markup() -> None:
    assert cell("a|b\nc <img> \x1b[31m") == "a\\|b c &lt;img> ?[31m"
    assert table(("x",), [("a|b",)]).splitlines()[-1] == "| a\\|b |"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1234.5678, "1235"), (12.345678, "12.35"), (0.00123456, "0.001235"), (0.0, "0"), (float("nan"), "nan")],
)
def test_a_number_has_four_digits_and_no_exponent(value: float, shown: str) -> None:
    assert number(value) == shown


def test_what_was_not_measured_is_a_dash() -> None:
    assert number_or_dash(None) == "-" and number_or_dash(0.0125, 1e3) == "12.50"
