"""JSON from files that nobody vouches for: duplicates, NaN, giant numbers and deep nesting are errors."""

from __future__ import annotations

import json
import math
from typing import Any

from lean.errors import PackError

MAX_DEPTH = 24
MAX_INTEGER = 2**63 - 1


class _Refused(ValueError):
    """Raised inside the parser's hooks; `parse_json` adds the file's name."""


def parse_json(data: bytes, origin: str) -> Any:
    """The value of one JSON document. `origin` names the file in every message.

    Errors: `PackError` for anything but UTF-8 JSON with unique keys, finite numbers, integers within 64
    bits, at most `MAX_DEPTH` levels and no lone surrogates.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_bounded_integer,
            parse_float=_finite_float,
        )
        _check(value, 0)
    except UnicodeDecodeError as error:
        raise PackError(f"{origin}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise PackError(f"{origin}: not JSON: line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise PackError(f"{origin}: nested deeper than {MAX_DEPTH} levels") from None
    except _Refused as error:
        raise PackError(f"{origin}: {error}") from None
    return value


def parse_json_object(data: bytes, origin: str) -> dict[str, Any]:
    """Like `parse_json`, for documents that must be an object."""
    value = parse_json(data, origin)
    if not isinstance(value, dict):
        raise PackError(f"{origin}: expected a JSON object, got {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"duplicate key {double[:80]!r}")
    return found


def _no_constant(text: str) -> Any:
    raise _Refused(f"{text} is not a JSON number")


def _bounded_integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > MAX_INTEGER:
        raise _Refused(f"integer {text[:24]} does not fit in 64 bits")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"number {text[:24]} is too large")
    return value


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _Refused(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise _Refused("a string holds a lone surrogate")
    elif isinstance(value, dict):
        for name, item in value.items():
            _check(name, depth + 1)
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
