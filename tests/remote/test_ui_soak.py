"""Soaks on the page: what a plan is offered as, how far one is, and which record is shown."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO
from soak_fakes import plan_of
from ui_fakes import RunningPage, running_page
from ui_soaks import ARMS, PNG, document, keep, record_name, standing

from lean.bench.results import list_runs
from lean.errors import NotReadyError, UsageError
from remote.ui.choices import Choices, HostChoice, order_from, standing_from
from remote.ui.plans import ArmChoice, PlanChoice, plan_choice, read_plans
from remote.ui.soak_progress import SoakProgress, from_standing
from remote.ui.soaks import Soaks, judged_arms

LINES = (
    "soak 20261121T100000.000Z-quick: 4 arms, quality, conversations, long_decode, concurrent",
    "arm whole: its phases are done",
    "arm twin: starting its engine",
    "arm twin: quality, replay 1 of 1",
    "arm twin: conversations, replay 3 of 5, about 12 min left",
)


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


def shown(results: Path, **wanted: str) -> dict[str, Any]:
    return asyncio.run(Soaks(results).newest("loopback", "quick", **wanted))


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


def test_a_replay_that_begins_tells_what_is_done_before_it() -> None:
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


# Records


def test_the_newest_record_of_the_plan_is_shown(tmp_path: Path) -> None:
    for second, plan in ((1, "quick"), (3, "quick"), (5, "other")):
        name = record_name(second, plan)
        keep(tmp_path, document(name, plan=plan), name)
    found = shown(tmp_path)
    assert [one["id"] for one in found["records"]] == [record_name(3), record_name(1)]
    record = found["record"]
    assert record["id"] == record_name(3) and record["complete"] and record["report"]
    assert record["pictures"] == ["soak.png"] and record["release"] == "688a537"
    assert shown(tmp_path, wanted=record_name(1))["record"]["id"] == record_name(1)
    with pytest.raises(NotReadyError, match="no record"):
        shown(tmp_path, wanted=record_name(5, "other"))


def test_arms_stand_side_by_side_with_their_verdicts_and_numbers(tmp_path: Path) -> None:
    keep(tmp_path, document(record_name(1)), record_name(1))
    arms = {one["name"]: one for one in shown(tmp_path)["record"]["arms"]}
    assert arms["whole"]["baseline"] and arms["damaged"]["control"] == "weights"
    assert (arms["split4"]["verdict"], arms["split4"]["rule"]) == ("default candidate", "wall gain")
    assert arms["split4"]["wall"] == {"mean": 9.389, "sd": 0.031, "n": 5}
    assert (
        set(arms["split4"]["change"]) == {"relative", "low", "high"}
        and arms["split4"]["tpot"]["p95"] == 4.63e-3
    )


@pytest.mark.parametrize(
    "changed",
    [{"summaries": [], "verdicts": []}, {"summaries": None, "verdicts": 3, "why_not": "x", "release": []},
     {"summaries": [{"name": "whole", "wall": {"mean": None}, "tpot": 4, "change": {"relative": "x"}}]},
     {"verdicts": [{"arm": "whole", "verdict": 3, "why": None, "also": {}}], "complete": "yes"}],
)  # fmt: skip
def test_a_record_without_a_part_is_shown_without_it(tmp_path: Path, changed: dict[str, Any]) -> None:
    keep(tmp_path, document(record_name(1), **changed), record_name(1))
    found = shown(tmp_path)
    assert found["broken"] == [] and [one["name"] for one in found["record"]["arms"]] == [
        one["name"] for one in ARMS
    ]
    whole = found["record"]["arms"][0]
    assert whole["wall"] is None or "wall" in str(document(record_name(1))["summaries"])


def test_an_incomplete_record_says_what_lacks(tmp_path: Path) -> None:
    changed = {"complete": False, "why_not": ["split4: HTTP 500"], "incomplete": ["a", "b"]}
    keep(tmp_path, document(record_name(1), **changed), record_name(1))
    record = shown(tmp_path)["record"]
    assert (record["complete"], record["why_not"], record["cut"]) == (False, ["split4: HTTP 500"], 2)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"{", "not JSON"), (b"[]", "object"), (b"{}", "it says it is no record"), (b"[" * 5000, "deeper"),
     (json.dumps(document(record_name(1))).encode(), "it says it is"), (b"\xff", "UTF-8")],
)  # fmt: skip
def test_a_broken_record_is_named_and_the_one_before_it_is_shown(
    tmp_path: Path, data: bytes, words: str
) -> None:
    keep(tmp_path, document(record_name(1)), record_name(1))
    keep(tmp_path, data, record_name(2))
    found = shown(tmp_path)
    (broken,) = found["broken"]
    assert broken["id"] == record_name(2) and words in broken["problem"] and "soak.json" in broken["problem"]
    assert found["record"]["id"] == record_name(1)


def test_a_record_that_was_edited_by_hand_is_named_and_not_believed(tmp_path: Path) -> None:
    folder = keep(tmp_path, document(record_name(1)), record_name(1))
    file = folder / "soak.json"
    file.write_text(file.read_text().replace("investigate", "keep opt-in"))
    found = shown(tmp_path)
    assert found["record"] is None and "changed since it was written" in found["broken"][0]["problem"]


def test_a_record_without_its_file_or_its_sums_is_named(tmp_path: Path) -> None:
    (keep(tmp_path, document(record_name(1)), record_name(1)) / "soak.json").unlink()
    (keep(tmp_path, document(record_name(2)), record_name(2)) / "SHA256SUMS").unlink()
    link = keep(tmp_path, document(record_name(3)), record_name(3)) / "soak.json"
    link.rename(link.with_name("away"))
    link.symlink_to("away")
    problems = [one["problem"] for one in shown(tmp_path)["broken"]]
    assert ["not there" in problems[0], "SHA256SUMS" in problems[1], "not there" in problems[2]] == [True] * 3


def test_links_hidden_folders_and_files_are_no_records(tmp_path: Path) -> None:
    folder = keep(tmp_path, document(record_name(1)), record_name(1)).parent
    (folder / record_name(2)).symlink_to(folder / record_name(1))
    (folder / f".{record_name(3)}.partial").mkdir()
    (folder / record_name(4)).write_text("x")
    (folder / "notes").mkdir()
    assert shown(tmp_path)["total"] == 1
    folder.rename(tmp_path / "away")
    folder.symlink_to(tmp_path / "away")
    assert shown(tmp_path)["total"] == 0


def test_of_many_records_only_the_one_that_is_shown_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for second in range(100):
        keep(tmp_path, document(record_name(second)), record_name(second))
    read: list[Path] = []
    monkeypatch.setattr(
        "remote.ui.soaks.parse_object", lambda data: read.append(tmp_path) or json.loads(data)
    )
    found = shown(tmp_path)
    assert found["total"] == len(found["records"]) == 100 and len(read) == 1
    assert found["record"]["id"] == record_name(99)


def test_soak_records_are_no_runs_of_the_history(tmp_path: Path) -> None:
    keep(tmp_path, document(record_name(1)), record_name(1))
    assert list_runs(tmp_path).broken == ()


# Over HTTP


@pytest.fixture
def page(tmp_path: Path) -> Iterator[RunningPage]:
    with running_page(tmp_path) as running:
        (tmp_path / "soak.lines").write_text("\n".join(LINES))
        yield running


def begin(page: RunningPage) -> None:
    assert page.begin("soak", host="loopback", plan="quick").status_code == 202
    page.says("replay 3 of 5")


def progress_of(page: RunningPage) -> dict[str, Any]:
    """The last progress before the lines of a page that comes now."""
    return next(data for name, data in page.events() if name == "progress")


def test_a_page_that_comes_later_sees_how_far_the_soak_is(page: RunningPage) -> None:
    begin(page)
    found = progress_of(page)
    assert found["eta"] == "about 12 min" and replays(found, "twin") == [1, 2, 0, 0]
    assert page.measure("decode_64_256").status_code == 409
    answer = page.post("/api/soak/standing", {"host": "loopback", "plan": "quick"})
    assert answer.status_code == 409 and answer.json()["operation"]["title"] == "Soak quick on loopback"
    assert '"--show"' not in (page.folder / "argv.jsonl").read_text(), "nothing else was asked of the host"


def test_to_cancel_a_soak_is_to_detach_and_the_message_says_that_it_goes_on(page: RunningPage) -> None:
    begin(page)
    page.post("/api/operation/cancel")
    ended, _ = page.ended()
    assert ended["state"] == "cancelled" and ended["plan"] == "quick"
    assert ended["message"].startswith("detached; job 'soak' goes on. Re-attach: invoke remote.jobs")


def test_a_soak_that_ends_names_its_record(page: RunningPage) -> None:
    (page.folder / "soak.end").write_text(f"results/v1/loopback/soak/{record_name(1)}")
    begin(page)
    ended, _ = page.ended()
    assert (ended["state"], ended["run"]) == ("done", ["loopback", "soak", record_name(1)])


def test_where_it_is_is_an_operation_that_answers(page: RunningPage) -> None:
    where = {"host": "loopback", "plan": "quick"}
    answer = page.post("/api/soak/standing", where)
    assert answer.status_code == 422 and "no soak 'quick'" in answer.json()["error"]["message"]
    (page.folder / "standing.json").write_text(json.dumps(standing()))
    found = page.post("/api/soak/standing", where).json()
    assert replays(found["progress"], "split4") == [1, 2] and len(found["arms"]) == 4
    assert page.measure("decode_64_256").status_code == 202, "the desk is free again"


@pytest.mark.parametrize("order", [{}, {"host": "x", "plan": "quick"}, {"host": "loopback", "plan": "../x"}])
def test_where_something_else_is_is_a_400(page: RunningPage, order: dict[str, str]) -> None:
    assert page.post("/api/soak/standing", order).status_code == 400


def test_a_record_its_report_and_its_figure_are_served_and_nothing_beside_them(page: RunningPage) -> None:
    keep(page.folder / "results", document(record_name(1)), record_name(1))
    found = page.client.get("/api/soak/loopback/quick").json()
    run = f"/api/runs/loopback/soak/{found['record']['id']}"
    report, figure = page.client.get(f"{run}/report.md"), page.client.get(f"{run}/soak.png")
    assert report.headers["content-type"] == "text/plain; charset=utf-8" and "<script>" in report.text
    assert figure.headers["content-type"] == "image/png" and figure.content == PNG
    for other in (
        "soak.json",
        "SHA256SUMS",
        "rows.jsonl.gz",
        "..",
        "%2e%2e",
        "..%2fsoak.png",
        ".soak.png",
        "x.png",
    ):
        assert page.client.get(f"{run}/{other}").status_code in (404, 400), other


@pytest.mark.parametrize(
    "path",
    [
        "nowhere/quick",
        "loopback/other",
        "loopback/..",
        "loopback/quick?record=x",
        "loopback/quick?record=..%2f..",
    ],
)
def test_records_of_what_is_not_there_are_a_404(page: RunningPage, path: str) -> None:
    assert page.client.get(f"/api/soak/{path}").status_code == 404
