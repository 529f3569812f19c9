"""JSON from files that nobody vouches for: duplicates, NaN, giant numbers and deep nesting are errors."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 24
MAX_INTEGER = 2**63 - 1


def parse_json(data: bytes, *, bounded: bool = True) -> Any:
    """The value of one JSON document: UTF-8, unique keys, finite numbers, at most `MAX_DEPTH` levels.

    `bounded`: also integers within 64 bits and strings of Unicode text; who checks every field by itself can
    do without. Errors: `ValueError` for anything else.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_bounded_integer if bounded else int,
            parse_float=_finite_float,
        )
        _check(value, 0, bounded)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    return value


def parse_object(data: bytes, *, bounded: bool = True) -> dict[str, Any]:
    """Like `parse_json`, for documents that must be an object."""
    value = parse_json(data, bounded=bounded)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate key {double[:80]!r}")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _bounded_integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > MAX_INTEGER:
        raise ValueError(f"integer {text[:24]} does not fit in 64 bits")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text[:24]} is too large")
    return value


def _check(value: Any, depth: int, bounded: bool) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        if bounded and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("a string holds a lone surrogate")
    elif isinstance(value, dict):
        for name, item in value.items():
            _check(name, depth + 1, bounded)
            _check(item, depth + 1, bounded)
    elif isinstance(value, list):
        for item in value:
            # Most items of long lists are numbers, and there is nothing in those to look at.
            if depth == MAX_DEPTH or not isinstance(item, (int, float)):
                _check(item, depth + 1, bounded)
