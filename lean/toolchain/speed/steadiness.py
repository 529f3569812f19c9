"""Clocks and throttling before and after a timing, and whether it counts: the rule of `lean.bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lean.bench.host_state import HostState, host_notes, throttle_reasons
from lean.errors import InvalidRunError, error_document

Read = Callable[[], HostState]


def clocks_document(before: HostState, after: HostState) -> dict[str, Any]:
    """Both readings, what they say of throttling, and what a reader should know besides."""
    return {
        "clocks": {"before": _data(before), "after": _data(after)},
        "throttled": list(throttle_reasons(before, after)),
        "notes": list(host_notes(before, after)),
    }


def _data(state: HostState) -> dict[str, Any]:
    """As JSON."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(state).items()}


def verdict(found: dict[str, Any], throttled: list[str]) -> dict[str, Any]:
    """A status with its `error`: one that is there already stays, else a throttled run is invalid."""
    if "error" in found or not throttled:
        return found
    return {"status": "invalid", **error_document(InvalidRunError("; ".join(throttled)))}
