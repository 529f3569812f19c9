"""Long lists of plain values are read fast, and not less strictly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from lean.contracts import from_data
from lean.errors import ContractError
from lean.strict_json import MAX_DEPTH, parse_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """A field of each kind of list."""

    SCHEMA: ClassVar[str] = "lists/v1"

    numbers: tuple[int, ...] = ()
    maybe: tuple[int | None, ...] = ()
    words: tuple[str, ...] = ()
    reals: tuple[float, ...] = ()
    tables: tuple[dict[str, int], ...] = ()


def read(**fields: Any) -> Lists:
    return from_data(Lists, {"schema": "lists/v1", **fields}, "x.json")


def test_plain_values_stay_as_they_are_and_whole_numbers_become_reals() -> None:
    found = read(numbers=[1, 2**70], maybe=[1, None], words=["a", ""], reals=[1, 2.5], tables=[{"a": 1}])
    assert found == Lists(
        numbers=(1, 2**70), maybe=(1, None), words=("a", ""), reals=(1.0, 2.5), tables=({"a": 1},)
    )
    assert type(found.reals[0]) is float


@pytest.mark.parametrize(
    ("field", "values", "problem"),
    [
        ("numbers", [1, True], r"numbers\[1\]: expected int, got True"),
        ("numbers", [1, None], r"numbers\[1\]: expected int, got None"),
        ("numbers", [1, 2.0], r"numbers\[1\]: expected int, got 2\.0"),
        ("maybe", [None, "1"], r"maybe\[1\]: expected int, got '1'"),
        ("maybe", [None, False], r"maybe\[1\]: expected int, got False"),
        ("words", ["a", 1], r"words\[1\]: expected str, got 1"),
        ("reals", [1.0, float("inf")], r"reals\[1\]: expected float, got inf"),
        ("tables", [1], r"tables\[0\]: expected a mapping, got 1"),
        ("tables", ["a"], r"tables\[0\]: expected a mapping, got 'a'"),
    ],
)
def test_one_wrong_value_is_named_by_its_place(field: str, values: list[Any], problem: str) -> None:
    with pytest.raises(ContractError, match=problem):
        read(**{field: values})


def test_json_is_as_deep_as_it_may_be_and_no_deeper() -> None:
    def nested(levels: int) -> bytes:
        return b"[" * levels + b"7" + b"]" * levels

    assert parse_json(nested(MAX_DEPTH)) is not None
    with pytest.raises(ValueError, match="nested deeper"):
        parse_json(nested(MAX_DEPTH + 1))
    with pytest.raises(ValueError, match="lone surrogate"):
        parse_json(b'[1, 2.5, "\\ud800"]')
