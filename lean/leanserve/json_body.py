"""A request body to one JSON object, strictly, with every size bounded before anything is built from it."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from lean.leanserve.api_error import ApiError, bad_request

MAX_DEPTH = 16

_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Errors: `ApiError` 400 for anything that RFC 8259 or this service does not
    take.

    Refused beside malformed text: invalid UTF-8, nesting deeper than `MAX_DEPTH`, NaN and Infinity, a
    duplicate field, unpaired surrogates in a string, and anything but an object at the top.
    """
    if not body.strip():
        raise _malformed("the body is empty; send one JSON object")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"the body is not UTF-8 (byte {error.start})") from error
    _check_depth(body)
    try:
        document = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise _malformed(f"expected a JSON object, got {type(document).__name__}")
    return document


def check_text(value: str, param: str) -> str:
    """`value`, unless it cannot be written as UTF-8 (an unpaired surrogate from an escape)."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise bad_request(f"{param}: unpaired surrogate at character {error.start}", param) from error
    return value


def _check_depth(body: bytes) -> None:
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(body):
        first = found.group()[:1]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _malformed(f"the body nests deeper than {MAX_DEPTH} levels")
        elif first in b"]}":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _malformed(f"duplicate field {name[:64]!r}")
        found[name] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise _malformed(f"{name} is not a JSON number")


def _malformed(message: str) -> ApiError:
    return bad_request(message, code="invalid_json")
