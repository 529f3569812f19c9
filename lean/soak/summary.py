"""What each arm of a soak came to, in numbers; the verdict, the page and the figures need nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy

from lean.contracts.soak import PHASES, Control, PhaseName, SoakPlan
from lean.soak.coherence import CoherenceWarning, coherence
from lean.soak.rows import ArmRows, Row
from lean.soak.student import ratio_margin

CONFIDENCE = 0.95  # of the interval of a change
BINS = 128  # points of the curve of a long decode, at most

Replay = Sequence[Row]
Turn = tuple[str, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Seconds of `n` replays, in their order; `sd` is the sample standard deviation, None of one replay."""

    mean: float
    sd: float | None
    n: int
    samples: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Seconds a token, pooled over the `n` gaps of all counted replays; linear interpolation (type 7)."""

    p50: float
    p95: float
    p99: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """(mean - baseline's) / baseline's, negative when faster; the interval holds 95 %, None of one replay."""

    relative: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Seconds a token near one position of a long answer: quantiles over all its gaps, of all replays."""

    position: int
    p5: float
    p50: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm. None is what could not be had, and `no_score`, `not_run` and `dropped` say why.

    `score` of `tasks` right answers, of a whole quality pass alone. `wall`: of a replay, its turns' times
    added; `tpot_p95_sd`: of the p95 of one replay. `concurrent`: until the last stream of a replay ended.
    `dropped`: a sentence for every replay that does not count. `asked` and `effective`: the settings, by
    name, as the plan has them and as the engine said; `passes`: the supplementary ones, what became of each.
    """

    name: str
    control: Control | None = None
    not_run: str | None = None
    score: int | None = None
    tasks: int | None = None
    no_score: str | None = None
    wall: Spread | None = None
    change: Change | None = None
    tpot: Quantiles | None = None
    tpot_p95_sd: float | None = None
    long_decode: Quantiles | None = None
    long_decode_curve: tuple[Bin, ...] = ()
    concurrent: Spread | None = None
    dropped: tuple[str, ...] = ()
    coherence: tuple[CoherenceWarning, ...] = ()
    asked: tuple[tuple[str, str], ...] = ()
    effective: tuple[tuple[str, str], ...] = ()
    passes: tuple[tuple[str, str], ...] = ()

    @property
    def replays(self) -> int:
        """Replays of conversations that count."""
        return 0 if self.wall is None else self.wall.n

    @property
    def differing(self) -> tuple[str, ...]:
        """Settings that the engine did not run with as asked."""
        effective = dict(self.effective)
        return tuple(name for name, value in self.asked if effective.get(name, value) != value)


def summarize(plan: SoakPlan, arms: Sequence[ArmRows]) -> tuple[ArmSummary, ...]:
    """A summary for every arm of the plan, in its order; one without rows carries the reason.

    A replay counts when every request of it came back whole and it has every turn that any replay of any arm
    has, for a sum that lacks a turn compares with nothing.
    """
    rows = {arm.name: arm for arm in arms}
    ran = [rows[arm.name] for arm in plan.arms if arm.name in rows]
    turns: dict[PhaseName, frozenset[Turn]] = {
        phase: frozenset(turn for arm in ran for replay in arm.replays(phase) for turn in _turns(replay))
        for phase in PHASES
        if phase != "quality"
    }
    baseline = rows.get(plan.baseline)
    found = [
        _summary(plan, rows[arm.name], turns, None if arm.name == plan.baseline else baseline)
        if arm.name in rows
        else ArmSummary(name=arm.name, not_run="no request of it was kept", no_score="it did not run")
        for arm in plan.arms
    ]
    beside = next(one.wall for one in found if one.name == plan.baseline)
    return tuple(
        replace(
            one,
            control=arm.control,
            asked=_asked(plan, arm.name),
            change=None if one.name == plan.baseline else change(beside, one.wall),
        )
        for arm, one in zip(plan.arms, found, strict=True)
    )


def change(baseline: Spread | None, arm: Spread | None) -> Change | None:
    """An arm's mean against the baseline's, with Welch's interval (`student`)."""
    if baseline is None or arm is None or baseline.mean <= 0 or arm.mean <= 0:
        return None
    relative = arm.mean / baseline.mean - 1
    if baseline.sd is None or arm.sd is None:
        return Change(relative=relative, low=None, high=None)
    first, second = (baseline.mean, baseline.sd, baseline.n), (arm.mean, arm.sd, arm.n)
    margin = ratio_margin(first, second, CONFIDENCE)
    return Change(relative=relative, low=relative - margin, high=relative + margin)


def _summary(
    plan: SoakPlan, arm: ArmRows, turns: dict[PhaseName, frozenset[Turn]], baseline: ArmRows | None
) -> ArmSummary:
    dropped: list[str] = []
    counted = {}
    for phase, there in turns.items():
        whole, reasons = _counted(phase, arm.replays(phase), there)
        counted[phase] = whole
        dropped += reasons
    no_score = _no_score(plan, arm)
    gaps = [_gaps(replay) for replay in counted["conversations"]]
    p95s = [float(numpy.quantile(one, 0.95)) / 1e6 for one in gaps if len(one)]
    return ArmSummary(
        name=arm.name,
        not_run=arm.not_run,
        score=None if no_score else sum(row.correct is True for row in arm.quality or ()),
        tasks=plan.quality.tasks if plan.quality else None,
        no_score=no_score,
        wall=_spread([sum(row.wall_s for row in replay) for replay in counted["conversations"]]),
        tpot=_quantiles(gaps),
        tpot_p95_sd=float(numpy.std(p95s, ddof=1)) if len(p95s) > 1 else None,
        long_decode=_quantiles([_gaps(replay) for replay in counted["long_decode"]]),
        long_decode_curve=tuple(_curve(counted["long_decode"])),
        concurrent=_spread([max(row.wall_s for row in replay) for replay in counted["concurrent"]]),
        dropped=tuple(dropped),
        coherence=coherence(arm, baseline),
        effective=arm.effective,
        passes=arm.passes,
    )


def _no_score(plan: SoakPlan, arm: ArmRows) -> str | None:
    """Why there is none: a score of some of the tasks would compare with nothing."""
    if plan.quality is None:
        return "the plan has no quality phase"
    if arm.quality is None:
        return arm.not_run or "the quality pass did not end"
    rows, tasks = arm.quality, plan.quality.tasks
    if len({row.conversation for row in rows}) != tasks or len(rows) != tasks:
        return f"{len(rows)} answers to {tasks} tasks"
    broken = [row for row in rows if not row.whole]
    if broken:
        return f"{len(broken)} of {tasks} answers are not whole (first: {_broken(broken[0])})"
    unscored = sum(row.correct is None for row in rows)
    return f"{unscored} of {tasks} answers were not scored" if unscored else None


def _counted(
    phase: PhaseName, replays: Sequence[Replay], turns: frozenset[Turn]
) -> tuple[list[Replay], list[str]]:
    """The replays that count, and a sentence for each of the others."""
    whole: list[Replay] = []
    reasons = []
    for number, replay in enumerate(replays, start=1):
        missing = turns.difference(_turns(replay))
        broken = [row for row in replay if not row.whole]
        if not missing and not broken and len(replay) == len(turns) > 0:
            whole.append(replay)
            continue
        place = f"{phase.replace('_', ' ')}, replay {number}"
        if broken:
            said = f"{len(broken):,} of {len(replay):,} answers are not whole (first: {_broken(broken[0])})"
        else:
            said = f"{len(replay):,} requests, where {len(turns):,} were to be made"
        reasons.append(f"{place}: {said}")
    return whole, reasons


def _turns(replay: Replay) -> Iterator[Turn]:
    return ((row.conversation, row.turn, row.stream) for row in replay)


def _broken(row: Row) -> str:
    place = f"{row.conversation} turn {row.turn}"
    if row.error is not None:
        return f"{place}: {row.error}"
    tokens = "an unknown number of" if row.tokens is None else f"{row.tokens:,}"
    return f"{place}: {tokens} of {row.asked_tokens:,} tokens"


def _gaps(replay: Replay) -> numpy.ndarray:
    """Microseconds between the tokens of all its answers."""
    count = sum(len(row.token_deltas_us) for row in replay)
    each = (delta for row in replay for delta in row.token_deltas_us)
    return numpy.fromiter(each, numpy.int64, count)


def _quantiles(gaps: Sequence[numpy.ndarray]) -> Quantiles | None:
    pooled = numpy.concatenate(gaps) if gaps else numpy.empty(0)
    if not len(pooled):
        return None
    p50, p95, p99 = (float(value) for value in numpy.quantile(pooled, (0.5, 0.95, 0.99)) / 1e6)
    return Quantiles(p50=p50, p95=p95, p99=p99, n=len(pooled))


def _spread(samples: Sequence[float]) -> Spread | None:
    if not samples:
        return None
    sd = float(numpy.std(samples, ddof=1)) if len(samples) > 1 else None
    return Spread(mean=float(numpy.mean(samples)), sd=sd, n=len(samples), samples=tuple(samples))


def _curve(replays: Sequence[Replay]) -> Iterator[Bin]:
    """Gaps by their position in the answer, in bins of equal width; the gap before token 2 has position 1."""
    answers = [numpy.array(row.token_deltas_us) / 1e6 for replay in replays for row in replay]
    longest = max((len(answer) for answer in answers), default=0)
    width = -(-longest // BINS)
    for low in range(0, longest, width or 1):
        near = numpy.concatenate([answer[low : low + width] for answer in answers])
        p5, p50, p95 = (float(value) for value in numpy.quantile(near, (0.05, 0.5, 0.95)))
        yield Bin(position=low + 1 + (min(width, longest - low) - 1) // 2, p5=p5, p50=p50, p95=p95)


def _asked(plan: SoakPlan, name: str) -> tuple[tuple[str, str], ...]:
    """The options that the plan sets for an arm, as text."""
    arm = plan.arm(name)
    options = ("encoding", "runner", "slots", "bucket", "threads", "split_k")
    given = ((option, getattr(arm, option)) for option in options)
    return ("engine", arm.engine), *((option, str(value)) for option, value in given if value is not None)
