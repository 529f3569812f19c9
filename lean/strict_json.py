"""JSON from files that nobody vouches for: duplicates, NaN, giant numbers and deep nesting are errors."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 24
MAX_INTEGER = 2**63 - 1


def parse_json(data: bytes, *, surrogates: bool = False) -> Any:
    """The value of one JSON document.

    Errors: `ValueError` for anything but UTF-8 JSON with unique keys, finite numbers, integers within 64
    bits, at most `MAX_DEPTH` levels and, unless `surrogates`, strings that are no Unicode text.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_bounded_integer,
            parse_float=_finite_float,
        )
        _check(value, 0, surrogates)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    return value


def parse_object(data: bytes, *, surrogates: bool = False) -> dict[str, Any]:
    """Like `parse_json`, for documents that must be an object."""
    value = parse_json(data, surrogates=surrogates)
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


def _check(value: Any, depth: int, surrogates: bool) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        if not surrogates and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("a string holds a lone surrogate")
    elif isinstance(value, dict):
        for name, item in value.items():
            _check(name, depth + 1, surrogates)
            _check(item, depth + 1, surrogates)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1, surrogates)
