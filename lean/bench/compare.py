"""Two runs side by side: what got better, what got worse, and what is no more than their own noise.

Medians are compared with medians and bests with bests, from every raw sample. Standard library here; numpy in
`bootstrap`.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lean.bench.bootstrap import Interval, Rounds, ratio_of_medians
from lean.bench.comparable import Axis, Difference, check_comparable
from lean.bench.metrics import RequestMetrics, request_metrics, round_tokens_per_s
from lean.bench.record import RunRecord
from lean.bench.sample import Sample
from lean.errors import InvalidRunError, UsageError
from lean.markdown import number, plain

Verdict = Literal["better", "worse", "within noise"]

FLOOR_PERCENT = 1.0  # the same code on the same machine differs by this from one day to the next
SPREADS = 2.0  # standard deviations of a difference that count as noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """`threshold_percent`: what counts as noise, None for what the runs' own spread says.

    `across`: the axes along which the runs may differ.
    """

    threshold_percent: float | None = None
    across: tuple[Axis, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedMetric:
    """One metric of both runs, in `unit`. Changes are of the second over the first.

    `median_ratio` and `best_ratio` are second over first; `interval` is where the first of them lies, None
    with fewer than two rounds. `best` is the highest rate and the lowest time, of ITL the best round's
    median.
    """

    metric: str
    unit: str
    higher_is_better: bool
    counts: tuple[int, int]
    medians: tuple[float, float]
    best: tuple[float, float]
    median_ratio: float
    best_ratio: float
    interval: Interval | None
    noise_percent: float
    verdict: Verdict

    @property
    def change_percent(self) -> float:
        """By how much the median rose, in percent of the first run's."""
        return 100 * (self.median_ratio - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs, what differs between them, and every metric that both have.

    `missing` names metrics that one of them lacks. Names are host / profile / run.
    """

    first: str
    second: str
    differences: tuple[Difference, ...]
    compared: tuple[ComparedMetric, ...]
    missing: tuple[str, ...]

    @property
    def regressed(self) -> tuple[ComparedMetric, ...]:
        """The metrics that got worse by more than noise."""
        return tuple(one for one in self.compared if one.verdict == "worse")


def compare_runs(first: RunRecord, second: RunRecord, rules: Rules) -> Comparison:
    """Compare `second` with `first`, the one it is measured against.

    Errors: those of `check_comparable`; `InvalidRunError` when they have no metric in common; `UsageError`
    for a threshold that is none.
    """
    threshold = rules.threshold_percent
    if threshold is not None and not (math.isfinite(threshold) and threshold >= 0):
        raise UsageError(f"--threshold {threshold}: expected percent, 0 or more")
    differences = check_comparable(first, second, rules.across)
    here, there = _observed(first), _observed(second)
    both = [key for key in here if here[key] and there[key]]
    if not both:
        raise InvalidRunError(f"{_name(first)} and {_name(second)}: no metric that both have; measure again")
    return Comparison(
        first=_name(first),
        second=_name(second),
        differences=differences,
        compared=tuple(_compare(key, here[key], there[key], threshold) for key in both),
        missing=tuple(_METRICS[key][0] for key in here if key not in both),
    )


# key -> name, unit, factor from seconds, whether more is better
_METRICS: dict[str, tuple[str, str, float, bool]] = {
    "tokens_per_s": ("generated tokens/s, all streams", "tokens/s", 1.0, True),
    "ttft": ("TTFT", "ms", 1e3, False),
    "tpot": ("TPOT", "ms", 1e3, False),
    "itl": ("ITL", "ms", 1e3, False),
    "e2e": ("E2E latency", "ms", 1e3, False),
}


def _compare(key: str, first: Rounds, second: Rounds, threshold: float | None) -> ComparedMetric:
    name, unit, factor, more = _METRICS[key]
    pooled = [[value for one in rounds for value in one] for rounds in (first, second)]
    low, high = (statistics.median(values) for values in pooled)
    # The shortest gap between two tokens is two chunks that came in one read; a round's median is none.
    tried = [[statistics.median(values) for values in rounds] for rounds in (first, second)]
    best = [(max if more else min)(values) for values in (tried if key == "itl" else pooled)]
    interval = ratio_of_medians(first, second)
    noise = _noise_percent(first, second) if threshold is None else threshold
    return ComparedMetric(
        metric=name,
        unit=unit,
        higher_is_better=more,
        counts=(len(pooled[0]), len(pooled[1])),
        medians=(low * factor, high * factor),
        best=(best[0] * factor, best[1] * factor),
        median_ratio=high / low,
        best_ratio=best[1] / best[0],
        interval=interval,
        noise_percent=noise,
        verdict=_verdict(high / low, interval, noise, more),
    )


def _verdict(ratio: float, interval: Interval | None, noise_percent: float, more: bool) -> Verdict:
    """A change counts when it is beyond the threshold and the interval of the ratio leaves out 1."""
    beyond = abs(ratio - 1) > noise_percent / 100
    if not beyond or (interval is not None and interval.holds(1.0)):
        return "within noise"
    return "better" if (ratio > 1) is more else "worse"


def _noise_percent(first: Rounds, second: Rounds) -> float:
    """Two standard deviations of the difference of two rounds, from what the rounds of each run spread.

    Of rounds, not of medians, which spread less: what differs between two runs of the same code is not only
    what differs within them.
    """
    spreads = []
    for rounds in (first, second):
        medians = [statistics.median(values) for values in rounds]
        spreads.append(statistics.stdev(medians) / statistics.median(medians) if len(medians) > 1 else 0.0)
    return max(FLOOR_PERCENT, 100 * SPREADS * math.hypot(*spreads))


def _observed(record: RunRecord) -> dict[str, Rounds]:
    """Each metric's values in seconds or tokens per second, by round; a single round counts by request."""
    rounds: dict[int, list[Sample]] = defaultdict(list)
    for sample in record.measured:
        rounds[sample.round].append(sample)
    groups: list[list[Sample]] = [members for _, members in sorted(rounds.items())]
    rates = [round_tokens_per_s(members) for members in groups]
    if len(groups) == 1:
        groups = [[sample] for sample in groups[0]]
    found = [[m for s in members if (m := request_metrics(s)) is not None] for members in groups]

    def by_round(values: Callable[[RequestMetrics], Sequence[float]]) -> Rounds:
        return [pooled for members in found if (pooled := [v for m in members for v in values(m)])]

    return {
        "tokens_per_s": [rate for rate in rates if rate],
        "ttft": by_round(lambda m: (m.ttft_s,)),
        "tpot": by_round(lambda m: (m.tpot_s,)),
        "itl": by_round(lambda m: m.itl_s),
        "e2e": by_round(lambda m: (m.e2e_s,)),
    }


def _name(record: RunRecord) -> str:
    return plain(f"{record.host}/{record.profile.id}/{record.id}")


def change_line(one: ComparedMetric) -> str:
    """One metric in one line."""
    first, second = one.medians
    return (
        f"{one.metric} {number(first)} -> {number(second)} {one.unit} ({one.change_percent:+.1f} %, "
        f"noise {one.noise_percent:.1f} %)"
    )
