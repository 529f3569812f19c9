"""The order of a soak, its folder, and what happens when anything goes wrong, on scripted engines."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from soak_fakes import LOCK, Behaviour, FakeStart, again, long_plan, soak_of, tree

from lean.errors import ContractError, IntegrityError, Interrupted, NotReadyError, PreflightError
from lean.soak import run as run_module
from lean.soak.rows import read_rows
from lean.soak.run import arm_rows, run_soak
from lean.soak.state import DONE, SoakState

FAKES = Path(__file__).resolve().parents[2] / "soak_fakes.py"
REPO = FAKES.parents[1]


def test_arms_take_turns_and_each_goes_through_every_phase_in_order(tmp_path: Path) -> None:
    start_engine = FakeStart({"whole": Behaviour(token_s=0.003)})
    soak = soak_of(tmp_path, start_engine)
    run_soak(soak)

    done = [(e["arm"], e["phase"]) for e in soak.state.events() if e["event"] == "phase done"]
    later = ["conversations", "long_decode", "concurrent"]  # of which each start does one replay
    assert done == [
        *(("whole", "quality"), ("split4", "quality")),
        *((arm, phase) for arm in ("whole", "split4") for phase in later),
    ]
    assert [start_engine.behaviours[arm].starts_seen for arm in ("whole", "split4")] == [2, 2]
    whole, split4 = arm_rows(soak.state)
    assert (whole.not_run, split4.not_run) == (None, None)
    assert whole.quality is not None and [row.correct for row in whole.quality] == [True] * 4
    assert [len(replay) for replay in whole.conversations] == [4, 4]
    assert [len(replay) for replay in whole.concurrent] == [2, 2]
    assert all(row.whole for replay in split4.long_decode for row in replay)
    row = whole.long_decode[0][0]
    assert (
        row.tokens == 6 and 1 <= len(row.token_deltas_us) <= 5
    )  # tokens that came in one read are one arrival
    assert row.ttft_s is not None and row.wall_s >= row.ttft_s > 0


def test_supplementary_passes_come_after_the_primary_ones_of_all_arms(tmp_path: Path) -> None:
    soak = soak_of(tmp_path, supplementary=[{"name": "regions", "regions": True}])
    run_soak(soak)

    kinds = [
        (e["event"], e["arm"]) for e in soak.state.events() if e["event"] in ("phase done", "pass ended")
    ]
    assert [kind for kind, _ in kinds] == ["phase done"] * 8 + ["pass ended"] * 2
    assert [arm.passes for arm in arm_rows(soak.state)] == [(("regions", "done"),)] * 2


def test_a_pass_that_leaves_nothing_or_whose_replay_fails_does_not_count(tmp_path: Path) -> None:
    start_engine = FakeStart({"whole": Behaviour(artifact=b""), "split4": Behaviour(short_every=17)})
    soak = soak_of(tmp_path, start_engine, supplementary=[{"name": "regions", "regions": True}])
    run_soak(soak)

    whole, split4 = arm_rows(soak.state)
    assert whole.passes == (("regions", "the engine left no regions.jsonl"),)
    assert split4.passes == (("regions", "its answers are not whole"),)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    soak = soak_of(tmp_path)
    run_soak(soak)
    before, start_engine = tree(soak.state.folder), FakeStart()
    run_soak(again(soak, start_engine))

    assert tree(soak.state.folder) == before
    assert start_engine.behaviours == {}  # no engine was started


def test_force_does_it_anew_and_keeps_the_old_rows_aside(tmp_path: Path) -> None:
    soak = soak_of(tmp_path)
    run_soak(soak)
    facts = (soak.state.folder / "arms/whole/arm.json").read_bytes()
    before = tree(soak.state.folder)
    run_soak(again(soak, force=True))

    assert set(tree(soak.state.folder)) == set(before) and tree(soak.state.folder) != before
    aside = list(soak.state.folder.glob("superseded/*/*/*/replay-*.jsonl"))
    assert len(aside) == len(before)
    (kept,) = soak.state.folder.glob("superseded/*/whole/arm.json")
    assert kept.read_bytes() == facts


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (Behaviour(starts=False), "ended with 1 before it served"),
        (Behaviour(effective={"split_k": "whole"}), r"split_k 4 \(it says whole\)"),
        (Behaviour(dies_after=9), "/health says 503"),
        (Behaviour(refuses_after=9), "HTTP 500: the model fell over"),
        (Behaviour(hangs_after=9), "no end within 1 s|ReadTimeout"),
        (Behaviour(other_lock_after=9), "another engine took its place"),
    ],
    ids=["does not start", "ignores the option", "dies", "refuses", "hangs", "another answers"],
)
@pytest.mark.fault("an arm's engine fails", "soak")
def test_an_engine_that_fails_is_given_up_by_name_and_the_others_go_on(
    tmp_path: Path, behaviour: Behaviour, reason: str
) -> None:
    soak = soak_of(tmp_path, FakeStart({"split4": behaviour}),
                   arms=[{"name": "whole"}, {"name": "split4", "split_k": 4}, {"name": "twin"}])  # fmt: skip
    run_soak(soak)

    whole, split4, twin = arm_rows(soak.state)
    assert whole.not_run is None and twin.not_run is None
    assert split4.not_run is not None and re.search(reason, split4.not_run), split4.not_run
    cut = [read_rows(file) for file in soak.state.folder.glob("arms/split4/*/*.partial")]
    began = behaviour.starts and not behaviour.effective
    assert len(cut) == began and all(rows for rows in cut)  # what came until then is kept, row by row
    run_soak(again(soak))
    assert arm_rows(soak.state)[1].not_run is None  # a later try with an engine that behaves completes it


def test_answers_that_lack_tokens_are_rows_that_do_not_count(tmp_path: Path) -> None:
    soak = soak_of(tmp_path, FakeStart({"split4": Behaviour(short_every=11)}))
    run_soak(soak)

    rows = [row for replay in arm_rows(soak.state)[1].conversations for row in replay]
    assert [row.whole for row in rows].count(False) == 2
    assert arm_rows(soak.state)[1].not_run is None  # it was measured; whether it counts is for the judge


def test_a_changed_configuration_is_named_and_nothing_is_mixed(tmp_path: Path) -> None:
    soak = soak_of(tmp_path)
    run_soak(soak)
    (soak.state.folder / "arms/whole/concurrent" / DONE).unlink()
    changed = dataclasses.replace(again(soak), lock="7" * 64)
    with pytest.raises(ContractError, match=r"begun with another configuration .* --resume --force"):
        run_soak(changed)


def test_rows_that_were_edited_are_refused(tmp_path: Path) -> None:
    soak = soak_of(tmp_path)
    run_soak(soak)
    file = soak.state.folder / "arms/whole/conversations/replay-1.jsonl"
    file.write_text(file.read_text().replace('"tokens":3', '"tokens":4', 1))
    with pytest.raises(IntegrityError, match=r"replay-1\.jsonl: changed since it was written"):
        arm_rows(soak.state)
    with pytest.raises(IntegrityError, match="changed since it was written"):
        run_soak(again(soak))
    run_soak(again(soak, force=True))
    assert arm_rows(soak.state)[0].not_run is None


def test_a_second_run_of_the_same_soak_names_the_first(tmp_path: Path) -> None:
    soak = soak_of(tmp_path)
    with soak.state.lock(), pytest.raises(PreflightError, match="already being written by process"), \
            SoakState.newest(tmp_path, "made").lock():  # fmt: skip
        pass


def test_a_soak_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    soak = soak_of(tmp_path)
    with pytest.raises(NotReadyError, match=soak.state.folder.name):
        SoakState.newest(tmp_path, "other")


@pytest.mark.fault("the chip is throttled", "soak")
def test_a_replay_on_a_throttled_chip_does_not_count_and_is_done_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soak, seen = soak_of(tmp_path), []

    def reasons(before: Any, after: Any) -> tuple[str, ...]:
        seen.append(1)
        return ("throttled: GPU 0 hot",) if len(seen) == 3 else ()

    monkeypatch.setattr(run_module, "throttle_reasons", reasons)
    run_soak(soak)
    whole, split4 = arm_rows(soak.state)
    assert whole.not_run == "arm whole: long_decode, replay 1: throttled: GPU 0 hot"
    assert not (soak.state.folder / "arms/whole/long_decode/replay-1.jsonl").exists()
    run_soak(again(soak))
    assert [arm.not_run for arm in arm_rows(soak.state)] == [None, None] and split4.not_run is None


@pytest.mark.fault("the disk is full", "soak")
def test_a_full_disk_stops_the_soak_by_name_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soak = soak_of(tmp_path)
    real, written = run_module.run_replay, []

    def full(engine: Any, groups: Any, limits: Any, write: Any) -> None:
        written.append(1)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        real(engine, groups, limits, write)

    monkeypatch.setattr(run_module, "run_replay", full)
    with pytest.raises(PreflightError, match=r"replay \d: the disk of .* is full"):
        run_soak(soak)
    before = tree(soak.state.folder)
    monkeypatch.setattr(run_module, "run_replay", real)
    run_soak(again(soak))
    assert before.items() <= tree(soak.state.folder).items()


def test_ctrl_c_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soak = soak_of(tmp_path)
    real, seen = run_module.run_replay, []

    def stopped(engine: Any, groups: Any, limits: Any, write: Any) -> None:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        real(engine, groups, limits, write)

    monkeypatch.setattr(run_module, "run_replay", stopped)
    with pytest.raises(Interrupted, match="--resume goes on"):
        run_soak(soak)
    assert soak.state.events()[-1]["event"] == "interrupted"
    assert len(soak.state.incomplete()) == 1


def test_a_journal_line_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    soak = soak_of(tmp_path)
    soak.state.note("one")
    with (soak.state.folder / "journal.jsonl").open("ab") as file:
        file.write(b'{"event": "tw')
    soak.state.note("three")
    assert [event["event"] for event in soak.state.events()] == ["one", "three"]
    assert all(len(event["boot_id"]) == 36 and event["pid"] > 0 for event in soak.state.events())


@pytest.mark.slow
@pytest.mark.fault("killed at any point", "soak")
def test_a_soak_killed_at_thirty_random_points_loses_and_doubles_nothing(tmp_path: Path) -> None:
    argv = [sys.executable, str(FAKES), str(tmp_path / "soaks")]
    environment = {"PYTHONPATH": f"{REPO}:{FAKES.parent}", "PATH": "/usr/bin:/bin"}
    draw, kept, kills = random.Random(20), {}, 0
    for _ in range(400):
        child = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        if kills < 30:
            child.stdout.readline()  # it has begun
            time.sleep(draw.uniform(0.0, 0.12))
            child.send_signal(signal.SIGKILL)
            kills += 1
        said = child.communicate()[0]
        assert child.returncode in (0, -signal.SIGKILL), said
        state = SoakState.newest(tmp_path / "soaks", "made")
        now = tree(state.folder)
        assert kept.items() <= now.items()  # no whole replay was done again, changed or lost
        kept = now
        if said.endswith("over\n"):
            break
    else:
        pytest.fail("the soak never came to its end")
    assert kills == 30
    plan = long_plan()
    for arm in plan.arms:
        for phase, rows in (("quality", 4), ("conversations", 4), ("long_decode", 1), ("concurrent", 2)):
            files = sorted((state.folder / "arms" / arm.name / phase).glob("replay-*.jsonl"))
            assert len(files) == plan.replays(phase)
            for file in files:
                found = [(row.conversation, row.turn) for row in read_rows(file)]
                assert len(found) == len(set(found)) == rows
            assert json.loads((files[0].parent / DONE).read_text())["config_sha256"]
    assert LOCK in (state.folder / "arms/whole/arm.json").read_text()
