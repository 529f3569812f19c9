"""Reading one JSON object field by field: each has a type and a range, and whatever nobody asked for is
refused.
"""

from __future__ import annotations

from typing import Any, TypeVar

from lean.leanserve.api_error import bad_request
from lean.leanserve.json_body import check_text

T = TypeVar("T")


class Fields:
    """The fields of a request. A null counts as absent, as OpenAI clients send it. Errors: `ApiError` 400 by
    field.
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
        """Refuse every value of a field this service knows but does not implement, except the neutral
        ones.
        """
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
