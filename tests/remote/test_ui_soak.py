"""Soaks on the page: which record is shown, and one that is started, watched and detached over HTTP."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import until
from ui_fakes import RunningPage, none_alive, running_page
from ui_soaks import ARMS, LINES, PNG, document, keep, record_name, standing

from lean.bench.results import list_runs
from lean.errors import NotReadyError
from remote.ui.soaks import Soaks


def shown(results: Path, **wanted: str) -> dict[str, Any]:
    return asyncio.run(Soaks(results).newest("loopback", "quick", **wanted))


def replays(found: dict[str, Any], name: str) -> list[int]:
    arm = next(one for one in found["arms"] if one["name"] == name)
    return [phase["done"] for phase in arm["phases"]]


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
    assert whole["wall"] is None if "summaries" in changed else whole["verdict"] == whole["why"] == ""


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


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_a_look_that_is_cancelled_or_outlived_leaves_no_child(page: RunningPage, number: int | None) -> None:
    (page.folder / "standing.wait").touch()
    answers: list[httpx.Response] = []
    where = {"host": "loopback", "plan": "quick"}
    asking = threading.Thread(target=lambda: answers.append(page.post("/api/soak/standing", where)))
    asking.start()
    until(page.pids)
    if number is None:
        until(lambda: page.post("/api/operation/cancel").status_code, lambda code: code == 202)
    else:
        assert page.stop(signal.SIGTERM) == 0
    asking.join(20)
    (answer,) = answers
    assert answer.status_code == 422 and "cancelled" in answer.json()["error"]["message"]
    none_alive(page.pids())


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
