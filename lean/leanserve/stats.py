"""Plain counters of the service.

Counting must cost a decode step nothing; `metrics` renders them when asked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter


class Histogram:
    """Counts of observations at or under each of `bounds`, in ascending order, with an open last one."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value, in the unit of the bounds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class ServiceStats:
    """What happened since the process started. Seconds and tokens; one writer thread per field."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.decode_steps = 0
        self.outcomes: Counter[str] = Counter()
        self.responses: Counter[tuple[str, int]] = Counter()
        self.queue_seconds = Histogram((0.001, 0.01, 0.1, 1.0, 10.0, 60.0))
        self.first_token_seconds = Histogram(
            (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
        )
        self.step_seconds = Histogram((0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0))
