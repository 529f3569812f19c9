"""A request's body: bounded while it is read, strictly one JSON object, taken field by field."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from starlette.requests import Request

from lean.leanserve.http.errors import ApiError, bad_request
from lean.strict_json import parse_object

T = TypeVar("T")


async def read_body(request: Request, *, limit: int, seconds: float) -> bytes:
    """The whole body. Errors: `ApiError` 413 when longer than `limit` bytes, 408 when not complete in time.

    A body somewhat too long is still read to its end, and thrown away, so that the client sees the 413
    instead of a connection reset; one far too long is refused at once.
    """
    announced = int(request.headers.get("content-length", "0"))  # the HTTP parser lets only digits through
    too_long = ApiError(413, f"the body is longer than {limit} bytes", code="body_too_large")
    if announced > 8 * limit:
        raise too_long
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > 8 * limit:
                    raise too_long
                if size <= limit:
                    body += part
    except TimeoutError as error:
        message = f"the body did not arrive within {seconds:g} s; is Content-Length right?"
        raise ApiError(408, message, code="body_timeout") from error
    if size > limit:
        raise too_long
    return bytes(body)


def parse_body(body: bytes) -> dict[str, Any]:
    """The one JSON object in `body`; ranges are for `Fields`. Errors: `ApiError` 400 (see `parse_object`)."""
    if not body.strip():
        raise bad_request("the body is empty; send one JSON object", code="invalid_json")
    try:
        return parse_object(body, bounded=False)
    except ValueError as error:
        raise bad_request(f"the body: {error}", code="invalid_json") from error


def check_text(value: str, param: str) -> str:
    """`value`, unless it cannot be written as UTF-8 (an unpaired surrogate from an escape)."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise bad_request(f"{param}: unpaired surrogate at character {error.start}", param) from error
    return value


class Fields:
    """The fields of a JSON object, each with a type and a range; whatever nobody asked for is refused.

    A null counts as absent, as OpenAI clients send it. Errors: `ApiError` 400 by field.
    """

    def __init__(self, document: dict[str, Any], origin: str = "") -> None:
        self._left = dict(document)
        self._origin = origin

    def name(self, field: str) -> str:
        """The field as the client knows it."""
        return f"{self._origin}{field}"

    def take(self, field: str) -> Any:
        """The raw value, or None; the field counts as read."""
        return self._left.pop(field, None)

    def integer(self, field: str, low: int, high: int) -> int | None:
        """A whole number between the bounds, both included."""
        value = self.take(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(field, "an integer", value)
        if not low <= value <= high:
            raise bad_request(
                f"{self.name(field)}: expected {low} to {high}, got {_show(value)}", self.name(field)
            )
        return value

    def number(
        self, field: str, low: float, high: float, default: float, *, above_low: bool = False
    ) -> float:
        """A finite number between the bounds; `above_low` leaves the lower one out."""
        value = self.take(field)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(field, "a number", value)
        inside = low < value <= high if above_low else low <= value <= high
        if not inside:  # NaN is never inside
            bounds = f"more than {low:g}, at most {high:g}" if above_low else f"{low:g} to {high:g}"
            raise bad_request(f"{self.name(field)}: expected {bounds}, got {_show(value)}", self.name(field))
        return float(value)

    def flag(self, field: str) -> bool:
        """True or false, false when absent."""
        value = self.take(field)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(field, "true or false", value)
        return bool(value)

    def text(self, field: str) -> str | None:
        """A string that is valid Unicode."""
        value = self.take(field)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._wrong(field, "a string", value)
        return check_text(value, self.name(field))

    def require(self, field: str, value: T | None) -> T:
        """The value, unless the field was absent."""
        if value is None:
            raise bad_request(f"{self.name(field)}: required", self.name(field), code="missing_field")
        return value

    def only(self, field: str, allowed: tuple[Any, ...], reason: str) -> None:
        """Refuse a field that is known but not implemented, unless it holds a neutral value."""
        value = self.take(field)
        neutral = any(
            value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in allowed
        )
        if value is not None and not neutral:
            raise bad_request(f"{self.name(field)}: {reason}", self.name(field), code="unsupported_value")

    def done(self, ignored: frozenset[str] = frozenset()) -> None:
        """Refuse every field that was not read."""
        unknown = sorted(self._left.keys() - ignored)
        if unknown:
            name = self.name(unknown[0])
            raise bad_request(f"unknown field {_show(name)}", name[:64], code="unknown_field")

    def _wrong(self, field: str, expected: str, value: Any) -> Exception:
        name = self.name(field)
        return bad_request(f"{name}: expected {expected}, got {_show(value)}", name, code="invalid_type")


def _show(value: Any) -> str:
    """A value for a message, short whatever the client sent."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, dict | list):
        return {dict: "an object", list: "an array"}[type(value)]
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
