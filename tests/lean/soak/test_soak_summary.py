"""The numbers of an arm: against numpy on the same rows, and what is left out of them."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from lean.contracts import to_data
from lean.contracts.soak import Arm, SoakPlan
from lean.percentile import percentile
from lean.soak.rows import ArmRows, Row
from lean.soak.student import ratio_margin, t_quantile
from lean.soak.summary import ArmSummary, summarize

MakeArm = Callable[..., ArmRows]
MakePlan = Callable[..., SoakPlan]


@pytest.fixture
def one(make_plan: MakePlan, make_arm: MakeArm) -> Callable[[ArmRows], ArmSummary]:
    """The summary of this arm beside an undamaged baseline."""
    return lambda arm: summarize(make_plan("base", arm.name), (make_arm("base"), arm))[1]


def cut(row: Row) -> Row:
    return dataclasses.replace(row, tokens=row.asked_tokens - 1)


def test_every_number_is_what_numpy_makes_of_the_same_rows(make_plan: MakePlan, make_arm: MakeArm) -> None:
    base, other = make_arm("base", seed=1), make_arm("other", seed=2, slower=0.03, right=47)
    first, second = summarize(make_plan("base", "other"), (base, other))
    for arm, found in ((base, first), (other, second)):
        walls = [sum(row.wall_s for row in replay) for replay in arm.conversations]
        pooled = [gap / 1e6 for replay in arm.conversations for row in replay for gap in row.token_deltas_us]
        p95s = [
            percentile([gap / 1e6 for row in replay for gap in row.token_deltas_us], 95)
            for replay in arm.conversations
        ]
        long = [gap / 1e6 for replay in arm.long_decode for row in replay for gap in row.token_deltas_us]
        together = [max(row.wall_s for row in replay) for replay in arm.concurrent]
        assert found.wall is not None and found.tpot is not None and found.concurrent is not None
        assert found.wall.samples == tuple(walls) and found.wall.n == 5
        assert found.wall.mean == pytest.approx(statistics.mean(walls))
        assert found.wall.sd == pytest.approx(statistics.stdev(walls))
        quantiles = (found.tpot.p50, found.tpot.p95, found.tpot.p99)
        assert quantiles == pytest.approx(tuple(numpy.quantile(pooled, (0.5, 0.95, 0.99))))
        assert quantiles == pytest.approx(tuple(percentile(pooled, at) for at in (50, 95, 99)))
        assert found.tpot.n == len(pooled)
        assert found.tpot_p95_sd == pytest.approx(statistics.stdev(p95s))
        assert found.long_decode is not None
        assert found.long_decode.p95 == pytest.approx(percentile(long, 95))
        assert found.concurrent.samples == tuple(together)
        assert found.dropped == () and found.no_score is None and found.tasks == 50
    assert (first.score, second.score) == (48, 47)
    assert first.change is None
    assert first.wall and second.wall and second.change
    assert second.change.relative == pytest.approx(second.wall.mean / first.wall.mean - 1)
    assert second.change.low is not None and second.change.high is not None
    assert second.change.low < second.change.relative < second.change.high


def test_the_curve_of_a_long_decode_has_every_gap_once_in_its_place(
    make_arm: MakeArm, make_row: Callable[..., Row], one: Callable[[ArmRows], ArmSummary]
) -> None:
    rising = make_row("0", range(1_000, 64_000, 1_000))
    curve = one(make_arm("rising", long_decode=((rising,),) * 5)).long_decode_curve
    assert [point.position for point in curve] == list(range(1, 64))
    assert [point.p50 for point in curve] == pytest.approx([i / 1e3 for i in range(1, 64)])
    long = make_row("0", range(1, 2048))
    curve = one(make_arm("long", long_decode=((long,),) * 5)).long_decode_curve
    assert (len(curve), curve[0].position, curve[-1].position) == (128, 8, 2040)
    assert [round(point.p50 * 1e6, 1) for point in curve[:2]] == [8.5, 24.5]  # 16 gaps each


def test_a_replay_counts_only_when_each_of_its_rows_is_whole(
    make_arm: MakeArm, one: Callable[[ArmRows], ArmSummary]
) -> None:
    arm = make_arm("other")
    replays = list(arm.conversations)
    replays[2] = (*replays[2][:-1], cut(replays[2][-1]))
    replays[4] = (dataclasses.replace(replays[4][0], error="no bytes for 900 s"), *replays[4][1:])
    found = one(dataclasses.replace(arm, conversations=tuple(replays)))
    assert found.replays == 3
    assert found.dropped == (
        "conversations, replay 3: 1 of 12 answers are not whole (first: c3 turn 2: 15 of 16 tokens)",
        "conversations, replay 5: 1 of 12 answers are not whole (first: c0 turn 0: no bytes for 900 s)",
    )


def test_a_replay_without_a_turn_that_the_others_have_does_not_count(
    make_arm: MakeArm, one: Callable[[ArmRows], ArmSummary]
) -> None:
    arm = make_arm("other")
    short = tuple(replay[:-1] for replay in arm.conversations)
    found = one(dataclasses.replace(arm, conversations=short))
    assert found.wall is None and found.change is None and len(found.dropped) == 5
    assert found.dropped[0] == "conversations, replay 1: 11 requests, where 12 were to be made"


@pytest.mark.parametrize(
    ("quality", "reason"),
    [
        (lambda rows: None, "the quality pass did not end"),
        (lambda rows: (), "0 answers to 50 tasks"),
        (lambda rows: rows[:-1], "49 answers to 50 tasks"),
        (lambda rows: (*rows[:-1], rows[0]), "50 answers to 50 tasks"),
        (lambda rows: (cut(rows[0]), *rows[1:]), "1 of 50 answers are not whole"),
        (lambda rows: (dataclasses.replace(rows[0], correct=None), *rows[1:]), "1 of 50 answers were not"),
    ],
    ids=["none", "empty", "one missing", "one twice", "one cut", "one unscored"],
)
def test_there_is_no_score_of_a_part_of_the_tasks(
    make_arm: MakeArm, one: Callable[[ArmRows], ArmSummary], quality: Callable[..., object], reason: str
) -> None:
    arm = make_arm("other")
    found = one(dataclasses.replace(arm, quality=quality(arm.quality)))
    assert found.score is None
    assert found.no_score is not None and found.no_score.startswith(reason)
    assert found.replays == 5


def test_without_a_quality_phase_no_arm_has_a_score(make_plan: MakePlan, make_arm: MakeArm) -> None:
    found = summarize(make_plan("base", "other", quality=None), (make_arm("base"), make_arm("other")))
    assert [arm.no_score for arm in found] == ["the plan has no quality phase"] * 2


def test_an_arm_that_was_not_run_carries_the_reason(make_plan: MakePlan, make_arm: MakeArm) -> None:
    nothing = make_arm("wo4", replays=0, quality=None, not_run="nvcc is not installed")
    base, given, absent = summarize(make_plan("base", "wo4", "wo8"), (make_arm("base"), nothing))
    assert base.not_run is None
    assert (given.not_run, given.no_score, given.wall) == ("nvcc is not installed",) * 2 + (None,)
    assert absent.not_run == "no request of it was kept"
    assert absent.score is None and absent.replays == 0 and absent.coherence == ()


def test_an_arm_without_any_row_has_no_number(
    make_arm: MakeArm, one: Callable[[ArmRows], ArmSummary]
) -> None:
    found = one(make_arm("empty", replays=0, quality=None, conversations=((), ())))
    numbers = (found.wall, found.tpot, found.tpot_p95_sd, found.long_decode, found.concurrent, found.change)
    assert numbers == (None,) * 6 and found.long_decode_curve == ()


def test_one_replay_has_a_mean_and_no_spread(make_arm: MakeArm, one: Callable[[ArmRows], ArmSummary]) -> None:
    found = one(make_arm("other", replays=1))
    assert found.wall is not None and found.wall.sd is None and found.tpot_p95_sd is None
    assert found.change is not None and found.change.low is None


def test_answers_of_a_single_token_have_walls_and_no_tpot(
    make_arm: MakeArm, make_row: Callable[..., Row], make_plan: MakePlan
) -> None:
    single = ((make_row("c0", ()),),) * 5
    arms = [make_arm(name, conversations=single) for name in ("base", "other")]
    found = summarize(make_plan("base", "other"), arms)[1]
    assert found.tpot is None and found.tpot_p95_sd is None
    assert found.wall is not None and found.wall.mean == pytest.approx(0.05)


def test_settings_asked_for_are_held_against_what_the_engine_says(
    make_plan: MakePlan, make_arm: MakeArm
) -> None:
    plan = make_plan("base", arms=(Arm(name="wo4", split_k=4, slots=2),))
    said = (("split_k", "1"), ("slots", "2"), ("threads", "4"))
    found = summarize(plan, (make_arm("base"), make_arm("wo4", effective=said)))[1]
    assert found.asked == (("engine", "leanserve"), ("slots", "2"), ("split_k", "4"))
    assert found.differing == ("split_k",)


def test_summaries_are_plain_json(make_plan: MakePlan, make_arm: MakeArm, tmp_path: Path) -> None:
    odd = make_arm("odd", replays=1, quality=None, passes=(("regions", "done"),))
    found = summarize(make_plan("base", "odd"), (make_arm("base"), odd))
    document = json.loads(json.dumps(to_data(found), allow_nan=False))
    assert [arm["name"] for arm in document] == ["base", "odd"]
    assert document[0]["wall"]["n"] == 5 and document[1]["passes"] == [["regions", "done"]]


def test_students_t_is_what_the_tables_say() -> None:
    table = {  # Abramowitz and Stegun, table 26.10; the last is the normal distribution's
        (0.95, 1): 12.706, (0.99, 1): 63.657, (0.95, 4): 2.776, (0.99, 4): 4.604, (0.95, 8): 2.306,
        (0.99, 8): 3.355, (0.95, 30): 2.042, (0.99, 30): 2.750, (0.95, 120): 1.980, (0.95, 1e9): 1.960,
    }  # fmt: skip
    for (confidence, freedom), expected in table.items():
        assert t_quantile(confidence, freedom) == pytest.approx(expected, abs=6e-4)


def test_the_interval_holds_the_true_change_as_often_as_it_says() -> None:
    random = numpy.random.default_rng(7)
    held = 0
    for _ in range(4_000):  # 0.5 % of the baseline's noise, three times that of the arm's
        base, arm = random.normal(100, 0.5, 5), random.normal(95, 1.5, 5)
        margin = ratio_margin((base.mean(), base.std(ddof=1), 5), (arm.mean(), arm.std(ddof=1), 5), 0.95)
        held += abs(arm.mean() / base.mean() - 0.95) <= margin
    assert 0.94 < held / 4_000 < 0.96


def test_two_walls_that_never_vary_have_an_interval_of_no_width() -> None:
    assert ratio_margin((100.0, 0.0, 5), (95.0, 0.0, 5), 0.95) == 0.0
