"""A soak plan as it is offered, and how far a soak is: from its own lines, or as its host keeps it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO
from soak_fakes import plan_of
from ui_soaks import ARMS, LINES, standing

from lean.errors import UsageError
from remote.ui.choices import Choices, HostChoice, order_from, standing_from
from remote.ui.plans import ArmChoice, PlanChoice, plan_choice, read_plans
from remote.ui.soak_progress import SoakProgress, from_standing
from remote.ui.soaks import judged_arms


def made() -> PlanChoice:
    """A plan of four arms and two phases and one pass, whatever the checkout's own plans become."""
    return PlanChoice(
        name="quick",
        baseline="whole",
        arms=tuple(ArmChoice(name=one["name"], options="", control=one["control"]) for one in ARMS),
        phases=(("quality", 1), ("conversations", 5), ("long_decode", 5), ("concurrent", 5)),
        passes=("regions",),
    )


def heard(*lines: str) -> dict[str, Any]:
    progress = SoakProgress.of(made())
    for line in lines:
        progress.hear(f"    {line}")
    return progress.document()


def arm(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in found["arms"] if one["name"] == name)


def replays(found: dict[str, Any], name: str) -> list[int]:
    return [phase["done"] for phase in arm(found, name)["phases"]]


# Plans


def test_a_plan_is_offered_with_what_it_asks_and_which_arms_are_damaged_on_purpose() -> None:
    damaged = {"name": "slow", "control": "slower"}
    plan = plan_choice(
        plan_of(arms=[{"name": "whole"}, {"name": "split4", "split_k": 4, "slots": 2}, damaged])
    )
    assert [(one.name, one.options, one.control) for one in plan.arms] == [
        ("whole", "", None), ("split4", "slots 2, split_k 4", None), ("slow", "", "slower"),
    ]  # fmt: skip
    assert (plan.name, plan.baseline, plan.about, plan.problem) == ("made", "whole", "a test", "")
    assert plan.phases == (("quality", 1), ("conversations", 2), ("long_decode", 2), ("concurrent", 2))
    assert any(one.name == "quick" and one.about and one.arms for one in read_plans()), "the checkout's own"


@pytest.mark.parametrize("text", ["", "schema: soak/v1\nid: other\n", "a: [", "\xff\x00"])
def test_a_plan_that_cannot_be_read_says_so_and_hides_no_other(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "profiles" / "soak"
    shutil.copytree(REPO / "profiles" / "soak", folder)
    (folder / "broken.yaml").write_text(text, encoding="latin-1")
    found = {one.name: one for one in read_plans(tmp_path)}
    assert "broken.yaml" in found["broken"].problem and not found["broken"].arms
    assert found["quick"].arms and not found["quick"].problem


def choices() -> Choices:
    host = HostChoice(name="h", contract="tiny-cpu", runner="torch", default=True, embedded=False)
    return Choices(hosts=(host,), profiles=("p",), plans=(made(), PlanChoice(name="bad", problem="x")))


@pytest.mark.parametrize(
    ("given", "command"),
    [({}, ""), ({"resume": False}, ""), ({"resume": True}, " --resume"), ({"plan": "bad"}, "")],
)
def test_a_soak_is_the_verb_that_a_person_would_type(given: dict[str, object], command: str) -> None:
    order = order_from({"kind": "soak", "host": "h", "plan": "quick"} | given, choices())
    assert order.command == f"invoke remote.soak --host h --plan {given.get('plan', 'quick')}{command}"


def test_where_a_soak_is_is_asked_with_show() -> None:
    order = standing_from({"host": "h", "plan": "quick"}, choices())
    assert order.command == "invoke remote.soak --host h --plan quick --show"


@pytest.mark.parametrize(
    ("given", "word"),
    [({"plan": "../quick"}, "plan"), ({"plan": None}, "plan"), ({"resume": "yes"}, "resume"),
     ({"force": True}, "takes no force"), ({"host": "x"}, "no host named 'x'")],
)  # fmt: skip
def test_a_soak_of_what_is_not_there_names_the_field(given: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        order_from({"kind": "soak", "host": "h", "plan": "quick"} | given, choices())


# Progress


def test_nothing_is_done_before_the_first_line() -> None:
    found = heard()
    assert [one["state"] for one in found["arms"]] == ["waiting"] * 4
    assert all(replays(found, one["name"]) == [0] * 4 for one in found["arms"])
    assert arm(found, "damaged")["control"] == "weights"


def test_replays_that_are_done_are_counted_and_the_one_that_runs_is_marked() -> None:
    found = heard(*LINES)
    assert found["soak"] == "20261121T100000.000Z-quick"
    assert (found["now"], found["eta"]) == ("twin: conversations, replay 3 of 5", "about 12 min")
    assert arm(found, "whole")["state"] == "done" and replays(found, "whole") == [1, 5, 5, 5]
    assert arm(found, "twin")["state"] == "running" and replays(found, "twin") == [1, 2, 0, 0]
    assert [phase["running"] for phase in arm(found, "twin")["phases"]] == [False, True, False, False]
    assert arm(found, "split4")["state"] == "waiting"


def test_seconds_are_left_at_the_end_and_nothing_is_said_of_the_first_replay() -> None:
    assert heard("arm whole: concurrent, replay 5 of 5, 45 s left")["eta"] == "45 s"
    assert heard("arm whole: quality, replay 1 of 1")["eta"] == ""


def test_an_arm_rests_while_another_takes_its_turn() -> None:
    found = heard(*LINES, "arm split4: starting its engine", "arm split4: quality, replay 1 of 1")
    assert arm(found, "twin")["state"] == "begun" and replays(found, "twin") == [1, 2, 0, 0]
    assert [one["name"] for one in found["arms"] if one["state"] == "running"] == ["split4"]


def test_an_arm_that_is_given_up_keeps_its_reason_while_the_others_go_on() -> None:
    found = heard(
        *LINES, "arm twin is given up: HTTP 500: gone, about 3 min left", "arm split4: starting its engine"
    )
    twin = arm(found, "twin")
    assert (twin["state"], twin["reason"]) == ("given up", "HTTP 500: gone, about 3 min left")
    assert replays(found, "twin") == [1, 2, 0, 0] and not any(one["running"] for one in twin["phases"])
    assert arm(found, "split4")["state"] == "starting"


def test_passes_come_after_every_arms_phases() -> None:
    begun = [f"arm {one['name']}: supplementary pass regions" for one in ARMS]
    found = heard(*LINES, "arm twin is given up: gone", begun[0], begun[1])
    assert [dict(one["passes"])["regions"] for one in found["arms"]] == [
        "ended",
        "running",
        "not run",
        "not run",
    ]
    assert [one["state"] for one in found["arms"]] == ["done", "given up", "done", "done"]
    assert replays(found, "damaged") == [1, 5, 5, 5] and found["eta"] == ""


@pytest.mark.parametrize(
    "line",
    ["", "[1] soak 0 s", "arm", "arm nobody: starting its engine", "arm whole: a word",
     "arm whole: x, replay 1 of 2", "arm whole: supplementary pass other",
     "charm whole: its phases are done"],
)  # fmt: skip
def test_a_line_of_something_else_changes_nothing(line: str) -> None:
    progress = SoakProgress.of(made())
    before = progress.document()
    assert not progress.hear(line) and progress.document() == before


def test_lines_of_a_plan_that_cannot_be_read_do_no_harm() -> None:
    progress = SoakProgress.of(PlanChoice(name="bad", problem="x"))
    assert not progress.hear(LINES[1]) and progress.document()["arms"] == []


def test_where_a_soak_is_has_the_same_form_as_its_lines() -> None:
    found = from_standing(standing())
    assert set(heard()) < set(found) and set(heard()["arms"][0]) == set(found["arms"][0])
    assert [one["state"] for one in found["arms"]] == ["done", "done", "given up", "waiting"]
    assert arm(found, "split4")["reason"] == "HTTP 500: the engine is gone"
    assert replays(found, "split4") == [1, 2] and dict(arm(found, "split4")["passes"]) == {"regions": "done"}
    assert found["cut"] == 1 and found["last"] == ["2026-11-21T10:01:02 phase done, twin, conversations"]
    assert [one["verdict"] for one in judged_arms(standing())][-1] == "investigate"


@pytest.mark.parametrize(
    "told", [{}, {"plan": 3, "phases": [], "summaries": {}, "last": "x"}, {"plan": {"arms": [{}]}}]
)
def test_where_a_soak_is_tolerates_what_lacks(told: dict[str, Any]) -> None:
    assert len(from_standing(told)["arms"]) == len(judged_arms(told))
