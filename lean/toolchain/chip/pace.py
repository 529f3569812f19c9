"""Timing: replays of one recorded graph and one wait for the last of them, on the host's clock.

A graph is started while the one before it runs, so starting costs nothing, and the wait is shared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

Replay = Callable[[int], float]  # run so many replays, wait for the last, return the seconds of all
WARM_UP = 3  # replays before the first sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long to look: `samples` of at least `seconds` each."""

    samples: int = 11
    seconds: float = 0.010


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Microseconds of one unit of work, one number a sample; a sample is `replays` of `units` of them."""

    us: tuple[float, ...]
    replays: int
    units: int

    @property
    def median_us(self) -> float:
        """What is compared."""
        return median(self.us)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "median_us": round(self.median_us, 4),
            "min_us": round(min(self.us), 4),
            "max_us": round(max(self.us), 4),
            "samples_us": [round(value, 4) for value in self.us],
            "replays": self.replays,
            "units": self.units,
        }


def take_samples(replay: Replay, units: int, pace: Pace) -> Samples:
    """Warm up, find how many replays fill a sample, take them. `units`: of work in one replay."""
    replay(WARM_UP)
    once = replay(WARM_UP) / WARM_UP
    replays = max(WARM_UP, math.ceil(pace.seconds / max(once, 1e-6)))
    us = tuple(1e6 * replay(replays) / (replays * units) for _ in range(pace.samples))
    return Samples(us=us, replays=replays, units=units)
