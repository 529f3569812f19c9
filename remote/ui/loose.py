"""Values out of documents that may hold anything: what is not of the type that is asked for is absent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_CHARACTERS = 2000


def words(value: object) -> str:
    """Text in one line, without control characters and not too long."""
    text = value if isinstance(value, str) else ""
    return "".join(c if c.isprintable() else " " for c in text[:_CHARACTERS]).strip()


def figure(value: object) -> float | None:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def count(value: object) -> int:
    """A whole number from 0; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def mapping(value: object) -> Mapping[str, Any]:
    """An object, else an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[Mapping[str, Any]]:
    """The objects of a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def texts(value: object) -> list[str]:
    """The texts of a list that are not empty."""
    return [found for each in value if (found := words(each))] if isinstance(value, list) else []


def figures(value: object, *names: str) -> dict[str, float | None] | None:
    """The named numbers of an object, None where there is no first one."""
    found = {name: figure(mapping(value).get(name)) for name in names}
    return found if found[names[0]] is not None else None
