"""The rules of the verdict: published figures, arms damaged on purpose, undamaged twins, and their order."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy
import pytest

from lean.contracts.soak import Arm, SoakPlan, Thresholds
from lean.soak.rows import ArmRows, Row
from lean.soak.summary import ArmSummary, Quantiles, Spread, summarize
from lean.soak.verdict import Verdict, baseline_noise, judge

MakeArm = Callable[..., ArmRows]
MakePlan = Callable[..., SoakPlan]
RULES = Thresholds()


def arm(
    name: str,
    wall: float,
    p95: float | None = 0.5,
    *,
    sd: float = 1.0,
    score: int | None = 48,
    replays: int = 5,
    spread: float | None = None,
    control: str | None = None,
) -> ArmSummary:
    """An arm from the figures that a paper has of it; times in seconds."""
    return ArmSummary(
        name=name,
        score=score,
        tasks=50,
        no_score=None if score is not None else "the quality pass did not end",
        wall=Spread(mean=wall, sd=sd, n=replays) if replays else None,
        tpot=None if p95 is None else Quantiles(p50=p95 * 0.9, p95=p95, p99=p95 * 1.1, n=1000),
        tpot_p95_sd=spread,
        control=control,
    )


def calls(*arms: ArmSummary, thresholds: Thresholds = RULES) -> list[str]:
    return [one.verdict for one in judge(arms, arms[0].name, thresholds)]


def test_the_published_arms_all_keep_opt_in() -> None:
    published = (  # nvllm's soak of its splits: seconds, their deviation, milliseconds, right answers of 50
        arm("wo1", 8104.75, 0.51073, sd=6.74, score=48),
        arm("wo2", 7910.47, 0.49307, sd=3.39, score=47),
        arm("wo4", 7829.37, 0.48666, sd=4.22, score=48),
        arm("wo8", 7833.98, 0.48521, sd=1.98, score=47),
    )
    found = judge(published, "wo1", RULES)
    assert [one.verdict for one in found] == ["baseline", *["keep opt-in"] * 3]
    assert found[2].rule == "none of the others"
    assert found[2].why == (
        "its wall is 3.40 % shorter than the baseline's, less than the 5 % that a default must gain"
    )
    assert all(one.also == () for one in found)
    wall = published[0].wall
    assert wall is not None
    assert baseline_noise(wall) == pytest.approx(4.6041 * 6.74 * (2 / 5) ** 0.5 / 8104.75, rel=1e-4)


@pytest.mark.parametrize("noise", [0.002, 0.005, 0.01, 0.015])
def test_an_undamaged_twin_is_not_flagged_and_no_default(
    make_plan: MakePlan, make_arm: MakeArm, noise: float
) -> None:
    plan = make_plan("base", "twin")
    for seed in range(20):
        arms = (
            make_arm("base", seed=seed, noise=noise),
            make_arm("twin", seed=1000 + seed, noise=noise),
        )
        found = judge(summarize(plan, arms), "base", plan.thresholds)
        assert [one.verdict for one in found] == ["baseline", "keep opt-in"], (seed, found[1].why)


@pytest.mark.parametrize("noise", [0.002, 0.005, 0.01])
def test_an_arm_that_is_six_percent_slower_is_caught_by_its_wall(
    make_plan: MakePlan, make_arm: MakeArm, noise: float
) -> None:
    plan = make_plan("base", arms=(Arm(name="slow", control="slower"),))
    for seed in range(20):
        arms = (
            make_arm("base", seed=seed, noise=noise),
            make_arm("slow", seed=1000 + seed, noise=noise, slower=0.07),  # and the first token is not slower
        )
        found = judge(summarize(plan, arms), "base", plan.thresholds)[1]
        assert (found.verdict, found.rule) == ("investigate", "wall regression"), (seed, found.why)


def test_an_unchanged_arm_is_slower_than_the_noise_once_in_two_hundred() -> None:
    random = numpy.random.default_rng(11)
    flagged = 0
    for _ in range(20_000):
        base, twin = random.normal(100, 1.5, 5), random.normal(100, 1.5, 5)
        spread = Spread(mean=base.mean(), sd=base.std(ddof=1), n=5)
        flagged += twin.mean() / base.mean() - 1 > baseline_noise(spread)
    assert 0.003 < flagged / 20_000 < 0.007


def test_damaged_weights_are_caught_by_the_score(make_plan: MakePlan, make_arm: MakeArm) -> None:
    plan = make_plan("base", "wo4", arms=(Arm(name="worse", control="weights"),))
    arms = (make_arm("base"), make_arm("wo4", seed=1), make_arm("worse", seed=2, right=41))
    found = judge(summarize(plan, arms), "base", plan.thresholds)
    assert [one.verdict for one in found] == ["baseline", "keep opt-in", "investigate"]
    assert found[2].rule == "score below the baseline"
    assert (
        found[2].why == "41 of 50 tasks are right, 7 fewer than the baseline's 48, and 2 fewer are accepted"
    )


def cut_every_tenth(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(
        dataclasses.replace(row, tokens=row.asked_tokens // 2) if i % 10 == 9 else row
        for i, row in enumerate(rows)
    )


def test_cut_answers_are_no_score_and_where_tasks_are_whole_no_replays(
    make_plan: MakePlan, make_arm: MakeArm
) -> None:
    plan = make_plan("base", "cut", "later")
    whole = make_arm("cut")
    later = make_arm("later", conversations=tuple(map(cut_every_tenth, whole.conversations)))
    assert whole.quality is not None
    cut = dataclasses.replace(
        whole, quality=cut_every_tenth(whole.quality), conversations=later.conversations
    )
    _, first, second = judge(summarize(plan, (make_arm("base", seed=9), cut, later)), "base", plan.thresholds)
    assert (first.verdict, first.rule) == ("no score", "no score")
    assert first.why == "no score: 5 of 50 answers are not whole (first: q9 turn 0: 8 of 16 tokens)"
    assert first.also == (
        "insufficient: 0 of 5 replays count: conversations, replay 1: 1 of 12 answers are not whole "
        "(first: c3 turn 0: 8 of 16 tokens)",
    )
    assert (second.verdict, second.rule) == ("insufficient", "too few replays")


def test_an_arm_that_was_not_run_has_no_score_and_says_why(make_plan: MakePlan, make_arm: MakeArm) -> None:
    plan = make_plan("base", "wo4")
    nothing = make_arm("wo4", replays=0, quality=None, not_run="the engine was not ready after 1200 s")
    found = judge(summarize(plan, (make_arm("base"), nothing)), "base", plan.thresholds)[1]
    assert found.verdict == "no score" and found.why == "no score: the engine was not ready after 1200 s"


def test_rules_that_would_have_fired_later_are_named_beside_the_first() -> None:
    found = judge((arm("base", 100), arm("bad", 110, score=20, replays=3)), "base", RULES)[1]
    assert (found.verdict, found.rule) == ("investigate", "score under the floor")
    assert [one.split(":")[0] for one in found.also] == ["investigate", "insufficient", "investigate"]
    assert "28 fewer than the baseline's 48" in found.also[0]
    assert "10.00 % longer" in found.also[2]


@pytest.mark.parametrize(
    ("score", "expected"), [(46, "keep opt-in"), (45, "investigate"), (50, "keep opt-in")]
)
def test_a_score_may_be_two_below_the_baseline(score: int, expected: str) -> None:
    assert calls(arm("base", 100), arm("other", 100, score=score)) == ["baseline", expected]


def test_a_score_at_the_floor_is_enough_and_one_below_is_not() -> None:
    found = calls(arm("base", 100, score=31), arm("at", 100, score=30), arm("under", 100, score=29))
    assert found == ["baseline", "keep opt-in", "investigate"]


def test_a_baseline_under_the_floor_says_so_and_the_others_are_judged() -> None:
    base, other = judge((arm("base", 100, score=12), arm("other", 100, score=31)), "base", RULES)
    assert base.verdict == "baseline"
    assert base.also == ("investigate: 12 of 50 tasks are right, under the floor of 30",)
    assert other.verdict == "keep opt-in"


@pytest.mark.parametrize(
    ("wall", "expected"), [(102, "keep opt-in"), (102.01, "investigate"), (98, "keep opt-in")]
)
def test_a_wall_may_be_two_percent_longer_where_noise_is_less(wall: float, expected: str) -> None:
    assert calls(arm("base", 100, sd=0.1), arm("other", wall)) == ["baseline", expected]


def test_a_wall_within_the_baselines_noise_is_no_regression() -> None:
    base = arm("base", 100, sd=1.5)  # noise: 4.604 * 1.5 * sqrt(2/5) = 4.37 %
    other = judge((base, arm("other", 104.3)), "base", RULES)[1]
    assert (
        other.why == "its wall is 4.30 % longer than the baseline's, within the 4.37 % of the baseline noise"
    )
    assert calls(base, arm("other", 104.4)) == ["baseline", "investigate"]


def test_a_gain_of_five_percent_with_no_worse_p95_is_the_default_candidate() -> None:
    base = arm("base", 100, 0.5, spread=0.01)
    assert calls(base, arm("a", 95, 0.51)) == ["baseline", "default candidate"]
    assert calls(base, arm("a", 95.01, 0.51)) == ["baseline", "keep opt-in"]
    slower_tail = judge((base, arm("a", 90, 0.5101)), "base", RULES)[1]
    assert slower_tail.verdict == "keep opt-in"
    assert "its p95 of TPOT is worse: 510.10 ms" in slower_tail.why
    assert calls(arm("base", 100, None), arm("a", 90)) == ["baseline", "keep opt-in"]
    assert calls(base, arm("a", 90, None)) == ["baseline", "keep opt-in"]


def test_of_several_that_gain_the_one_with_the_better_p95_is_named() -> None:
    arms = (arm("base", 100), arm("a", 90, 0.47), arm("b", 92, 0.45), arm("c", 94, 0.46))
    found = judge(arms, "base", RULES)
    assert [one.verdict for one in found] == ["baseline", "keep opt-in", "default candidate", "keep opt-in"]
    assert found[1].rule == "better p95 elsewhere"
    assert found[1].why.endswith("but b gains enough too and has the better p95, 450.00 ms")
    even = judge((arm("base", 100), arm("a", 92, 0.45), arm("b", 90, 0.45)), "base", RULES)
    assert [one.verdict for one in even] == [
        "baseline",
        "keep opt-in",
        "default candidate",
    ]  # the shorter wall


def test_an_arm_damaged_on_purpose_is_never_the_candidate() -> None:
    found = judge((arm("base", 100), arm("worse", 90, control="weights")), "base", RULES)[1]
    assert found.verdict == "keep opt-in" and "damaged on purpose" in found.why


@pytest.mark.parametrize(
    ("base", "call", "reason"),
    [
        (arm("base", 100, score=None), "no score", "the quality pass did not end"),
        (arm("base", 100, replays=4), "insufficient", "4 of 5 replays count"),
        (arm("base", 100, replays=0), "insufficient", "0 of 5 replays count"),
    ],
)
def test_without_a_sound_baseline_no_arm_is_judged(base: ArmSummary, call: str, reason: str) -> None:
    found = judge((base, arm("a", 90), arm("b", 90, score=None)), "base", RULES)
    assert [one.verdict for one in found] == [call, "not judged", "not judged"]
    assert all(reason in one.why for one in found)
    assert found[1].also == () and found[2].also == ("no score: no score: the quality pass did not end",)


def test_a_baseline_without_a_summary_is_refused() -> None:
    with pytest.raises(ValueError, match="no summary of 'wo1'"):
        judge((arm("a", 100),), "wo1", RULES)


def expected(one: ArmSummary, base: ArmSummary) -> str:
    """The rules again, as the requirements have them, for arms whose baseline has noise under 2 %."""
    assert base.wall is not None and base.score is not None and base.tpot is not None
    if one.score is None:
        return "no score"
    if one.score < 30 or one.score < base.score - 2:
        return "investigate"
    if one.wall is None or one.wall.n < 5:
        return "insufficient"
    if one.wall.mean > base.wall.mean * 1.02:
        return "investigate"
    assert one.tpot is not None
    gains = one.wall.mean <= base.wall.mean * 0.95 and one.tpot.p95 <= base.tpot.p95
    return "default candidate" if gains else "keep opt-in"


def test_the_first_rule_that_applies_decides_whatever_else_is_wrong() -> None:
    base = arm("base", 100, 0.5, sd=0.2)
    scores, walls, counts, tails = (None, 20, 45, 48), (90, 96, 101, 106), (0, 4, 5), (0.45, 0.55)
    for score, wall, count, tail in itertools.product(scores, walls, counts, tails):
        one = arm("one", wall, tail, sd=0.2, score=score, replays=count)
        found: Verdict = judge((base, one), "base", RULES)[1]
        assert found.verdict == expected(one, base), (score, wall, count, tail)
        assert found.why and not any(found.why in other for other in found.also)
