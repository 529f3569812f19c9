"""What is to be done about each arm: the first rule that applies, in an order that was fixed before the soak.

1. No whole quality pass: `no score`.
2. A score under the floor, or more points below the baseline's than the plan accepts: `investigate`.
3. Fewer replays that count than the plan wants: `insufficient`.
4. A wall that is longer by more than the plan accepts and than the baseline's noise: `investigate`.
5. A wall that is shorter by what a default must gain and by more than that noise, with a p95 of TPOT no worse
   than the baseline's plus that figure's own spread: `default candidate`. Of several the one with the better
   p95.
6. Anything else: `keep opt-in`.

Without a score or enough replays of the baseline nothing is judged. The rules read summaries alone, so they
judge published figures too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lean.contracts.soak import Thresholds
from lean.soak.student import t_quantile
from lean.soak.summary import ArmSummary, Spread

NOISE_CONFIDENCE = 0.99
DOUBTFUL = ("investigate", "no score", "insufficient")  # calls after which somebody has to look

Call = Literal[
    "baseline", "no score", "investigate", "insufficient", "default candidate", "keep opt-in", "not judged"
]
Rule = Literal[
    "no score",
    "score under the floor",
    "score below the baseline",
    "too few replays",
    "wall regression",
    "wall gain",
    "better p95 elsewhere",
    "none of the others",
    "the baseline",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`rule` decided it and `why` says so with figures; `also`: what later rules would have said."""

    arm: str
    verdict: Call
    rule: Rule
    why: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Fired:
    call: Call
    rule: Rule
    why: str


def judge(summaries: Sequence[ArmSummary], baseline: str, thresholds: Thresholds) -> tuple[Verdict, ...]:
    """A verdict for every arm, in order; at most one is the default candidate.

    Errors: `ValueError` when no summary is the baseline's.
    """
    base = next((one for one in summaries if one.name == baseline), None)
    if base is None:
        raise ValueError(f"baseline: no summary of {baseline!r}")
    unfit = next((one for one in _fired(base, base, thresholds) if one.rule in _UNFIT), None)
    if unfit is not None:
        return tuple(_unjudged(one, base, unfit, thresholds) for one in summaries)
    found = [
        _baseline(one, thresholds) if one is base else _first(one, list(_fired(one, base, thresholds)))
        for one in summaries
    ]
    gaining = [one for one, verdict in zip(summaries, found, strict=True) if verdict.rule == "wall gain"]
    if len(gaining) > 1:
        best = min(gaining, key=lambda one: (_p95(one), _mean(one)))
        others = {one.name for one in gaining if one is not best}
        found = [_passed_over(one, best) if one.arm in others else one for one in found]
    return tuple(found)


def caught(arm: ArmSummary, verdict: Verdict) -> bool | None:
    """Whether the rule for its damage called an arm that is damaged on purpose; None: it was not judged.

    Perturbed weights show in the score, slowness in the wall, and cut answers in what does not count.
    """
    rules: dict[str | None, tuple[Rule, ...]] = {
        "weights": ("score under the floor", "score below the baseline"),
        "slower": ("wall regression",),
        "cut": ("no score", "too few replays"),
    }
    if arm.not_run is not None or verdict.verdict == "not judged":
        return None
    return verdict.rule in rules[arm.control]


def baseline_noise(wall: Spread) -> float:
    """How far the mean of an unchanged arm may lie from the baseline's by chance, as a share of that.

    Fisher's least significant difference (The Design of Experiments, 1935) at 1 %: half of the 99 % interval
    of the difference between two means of n replays, under the baseline's own spread:
    t(99 %, n - 1) · sd · sqrt(2/n) / mean. With five replays that is 2.9 sd. An unchanged arm is slower by
    more once in 200 soaks, when its walls vary as the baseline's do: that is what starting both engines anew
    and in turn is for, and what a twin shows. 0 of one replay, which has no spread.
    """
    if wall.sd is None or wall.mean <= 0:
        return 0.0
    return t_quantile(NOISE_CONFIDENCE, wall.n - 1) * wall.sd * math.sqrt(2 / wall.n) / wall.mean


def percent(share: float) -> str:
    """A measured share as text, such as `2.40 %`."""
    return f"{100 * share:.2f} %"


def limit(share: float) -> str:
    """A share that a plan sets as text, such as `5 %`."""
    return f"{100 * share:g} %"


_UNFIT: tuple[Rule, ...] = ("no score", "too few replays")


def _fired(arm: ArmSummary, base: ArmSummary, thresholds: Thresholds) -> Iterator[_Fired]:
    """Every rule that applies, in order; the last always does."""
    yield from _by_score(arm, base, thresholds)
    if arm.replays < thresholds.replays:
        reason = arm.not_run or "; ".join(arm.dropped[:1])
        yield _Fired(
            "insufficient",
            "too few replays",
            f"{arm.replays} of {thresholds.replays} replays count" + (f": {reason}" if reason else ""),
        )
    yield from _by_speed(arm, base, thresholds)


def _by_score(arm: ArmSummary, base: ArmSummary, thresholds: Thresholds) -> Iterator[_Fired]:
    if arm.score is None:
        yield _Fired("no score", "no score", f"no score: {arm.no_score or 'none was given'}")
        return
    of = "" if arm.tasks is None else f" of {arm.tasks}"
    if arm.score < thresholds.floor:
        why = f"{arm.score}{of} tasks are right, under the floor of {thresholds.floor}"
        yield _Fired("investigate", "score under the floor", why)
    if base.score is not None and base.score - arm.score > thresholds.drop:
        lost = base.score - arm.score
        why = (
            f"{arm.score}{of} tasks are right, {lost} fewer than the baseline's {base.score}, and "
            f"{thresholds.drop} fewer are accepted"
        )
        yield _Fired("investigate", "score below the baseline", why)


def _by_speed(arm: ArmSummary, base: ArmSummary, thresholds: Thresholds) -> Iterator[_Fired]:
    if arm.wall is None or base.wall is None or base.wall.mean <= 0:
        yield _Fired("keep opt-in", "none of the others", "there are no walls to compare")
        return
    slower = _rounded(arm.wall.mean / base.wall.mean - 1)
    noise = baseline_noise(base.wall)
    allowed = max(thresholds.regression, noise)
    if noise == allowed:
        bar = f"the {percent(noise)} of the baseline noise"
    else:
        bar = f"the {limit(allowed)} that are accepted"
    if slower > allowed:
        why = f"its wall is {percent(slower)} longer than the baseline's, over {bar}"
        yield _Fired("investigate", "wall regression", why)
    words = f"{percent(abs(slower))} {'longer' if slower > 0 else 'shorter'} than the baseline's"
    gains = -slower >= thresholds.gain and -slower > noise  # one within the noise is a chance one
    p95, bound = _p95(arm), _p95(base) + (base.tpot_p95_sd or 0.0)
    tail = f"{p95 * 1e3:.2f} ms, and the baseline's with its spread is {bound * 1e3:.2f} ms"
    wall = f"its wall is {words}"
    if gains and arm.control is not None:
        why = f"{wall}, but the arm is damaged on purpose and no candidate"
    elif gains and (arm.tpot is None or base.tpot is None):
        why = f"{wall}, but there is no p95 of TPOT to hold against the baseline's"
    elif gains and p95 > bound:
        why = f"{wall}, but its p95 of TPOT is worse: {tail}"
    elif gains:
        yield _Fired("default candidate", "wall gain", f"{wall}, and its p95 of TPOT is no worse: {tail}")
        return
    elif slower > 0 or -slower >= thresholds.gain:
        why = f"{wall}, within {bar}"
    else:
        why = f"{wall}, less than the {limit(thresholds.gain)} that a default must gain"
    yield _Fired("keep opt-in", "none of the others", why)


def _first(arm: ArmSummary, fired: Sequence[_Fired]) -> Verdict:
    deciding, *others = fired
    return Verdict(
        arm=arm.name,
        verdict=deciding.call,
        rule=deciding.rule,
        why=deciding.why,
        also=tuple(f"{one.call}: {one.why}" for one in others if one.rule != "none of the others"),
    )


def _baseline(base: ArmSummary, thresholds: Thresholds) -> Verdict:
    """The others are judged against it; its own score may still be too low."""
    found = _first(base, list(_fired(base, base, thresholds)))
    floor = (f"{found.verdict}: {found.why}",) if found.rule == "score under the floor" else ()
    return Verdict(
        arm=base.name,
        verdict="baseline",
        rule="the baseline",
        why="the others are judged against it",
        also=floor,
    )


def _unjudged(arm: ArmSummary, base: ArmSummary, unfit: _Fired, thresholds: Thresholds) -> Verdict:
    if arm is base:
        return Verdict(
            arm=arm.name, verdict=unfit.call, rule=unfit.rule, why=f"{unfit.why}; so no arm can be judged"
        )
    own: tuple[Rule, ...] = (*_UNFIT, "score under the floor")  # those that need no baseline
    return Verdict(
        arm=arm.name,
        verdict="not judged",
        rule="the baseline",
        why=f"the baseline {base.name} cannot be judged against: {unfit.why}",
        also=tuple(f"{one.call}: {one.why}" for one in _fired(arm, base, thresholds) if one.rule in own),
    )


def _passed_over(verdict: Verdict, best: ArmSummary) -> Verdict:
    """An arm that gains enough, and another has the better p95."""
    return replace(
        verdict,
        verdict="keep opt-in",
        rule="better p95 elsewhere",
        why=f"{verdict.why}; but {best.name} gains enough too and has the better p95, "
        f"{_p95(best) * 1e3:.2f} ms",
    )


def _p95(arm: ArmSummary) -> float:
    return math.inf if arm.tpot is None else arm.tpot.p95


def _mean(arm: ArmSummary) -> float:
    return math.inf if arm.wall is None else arm.wall.mean


def _rounded(share: float) -> float:
    """Without the last digits: 0.95/1 - 1 is not quite -0.05, and a gain of exactly 5 % is one."""
    return round(share, 12)
