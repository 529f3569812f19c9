"""The search for tiles: what it tries, what wins, and that neither a crash nor a kill costs more than one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch, which the references are written in, is not installed")

import tune_fakes  # noqa: E402
from speed_fakes import STEADY, Clockwork, hotter  # noqa: E402

from kernels.case import cases_of  # noqa: E402
from kernels.qwen3 import kernel_specs  # noqa: E402
from kernels.tiles import Tile, Tiles  # noqa: E402
from lean.bench.host_state import HostState  # noqa: E402
from lean.cli import run_program  # noqa: E402
from lean.errors import IntegrityError, PreflightError, UsageError  # noqa: E402
from lean.toolchain.__main__ import main  # noqa: E402
from lean.toolchain.chip import find  # noqa: E402
from lean.toolchain.chip.find import needed_gpu  # noqa: E402
from lean.toolchain.chip.pace import Pace  # noqa: E402
from lean.toolchain.compiler import Toolchain  # noqa: E402
from lean.toolchain.records import keep  # noqa: E402
from lean.toolchain.speed.binaries import digest  # noqa: E402
from lean.toolchain.speed.contract_shapes import read_shapes  # noqa: E402
from lean.toolchain.speed.shown import tune_tables  # noqa: E402
from lean.toolchain.tune import compile as tune_compile  # noqa: E402
from lean.toolchain.tune.candidate import prove_candidate, time_candidate  # noqa: E402
from lean.toolchain.tune.choice import check_replaces, choose, merged  # noqa: E402
from lean.toolchain.tune.job import Job, operation_of  # noqa: E402
from lean.toolchain.tune.journal import Journal, read_journal  # noqa: E402
from lean.toolchain.tune.plan import Candidate, Key, kernel_of, key_of, make_plan, read_tuning  # noqa: E402
from lean.toolchain.tune.run import Options, tune  # noqa: E402
from lean.toolchain.tune.search import TURNS  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TARGET = "sm_90"
TINY = read_shapes("tiny-cpu")
H100 = read_shapes("qwen3-4b-base-bf16-h100")
EMPTY: dict[str, Any] = {"schema": "tiles/v1", "target": TARGET, "tiles": []}
ATTENTION = read_tuning(TARGET)["tiles"]  # of any geometry: prompts' attention


def search(
    out: Path,
    run: Callable[[Job], dict[str, Any]],
    *,
    only: Sequence[str] = ("qkv.rows",),
    refuse: Callable[[dict[str, Any]], bool] = lambda tile: False,
    tuning: dict[str, Any] | None = None,
    gpu: dict[str, Any] = tune_fakes.GPU,
    heard: list[str] | None = None,
    seed: int = 1,
    read_state: Callable[[], HostState] = lambda: STEADY,
    pace: Pace = Options(out=Path()).pace,  # noqa: B008
) -> dict[str, Any]:
    options = Options(out=out, only=tuple(only), seconds=1.0, seed=seed, pace=pace)
    return tune(
        options,
        TINY,
        gpu,
        heard.append if heard is not None else lambda line: None,
        tuning=tuning,
        run=run,
        compile_plan=tune_fakes.compiled(refuse),
        read_state=read_state,
    )


TOOLS = Toolchain(tools=None, versions={"tileiras": "1"}, targets=(TARGET,))

# What is tried.


def test_every_kernel_with_a_tile_has_candidates_that_are_all_different_kernels() -> None:
    plan = make_plan(H100, TARGET, (), read_tuning(TARGET))
    names = [kernel_of(key) for key in plan.candidates]
    for path in ("one", "rows", "prompt64", "prompt256", "prompt1024"):
        assert {f"{name}.{path}" for name in ("qkv", "gate_up", "output", "down")} <= set(names)
    assert {"head.one", "head.rows", "attention.prompt64"} <= set(names) and len(names) == len(set(names))
    specs = {
        spec.name: spec for spec in kernel_specs(H100.sizes, Tiles(TARGET, _entries(read_tuning(TARGET))))
    }
    for key, family in plan.candidates.items():
        assert len(family) > 5 and len({candidate.digest for candidate in family}) == len(family)
        assert [candidate.current for candidate in family] == [True] + [False] * (len(family) - 1)
        assert family[0].digest == digest(specs[kernel_of(key)])
        assert {candidate.spec.name for candidate in family} == {kernel_of(key)}
        for candidate in family:
            assert candidate.tile is not None
            assert "attention" in key or int(key[2]) % candidate.tile["rows"] == 0


def _entries(tuning: dict[str, Any]) -> dict[Key, Tile]:
    return {key_of(entry): Tile(**entry["tile"]) for entry in tuning["tiles"]}


def test_prompts_of_an_encoded_contract_are_bf16_s_own_and_left_out() -> None:
    shapes = read_shapes("tiny-cpu", "fp8-e4m3")
    assert (shapes.id, shapes.sizes.encoding) == ("tiny-cpu-fp8-e4m3", "fp8-e4m3")
    plan = make_plan(shapes, TARGET, (), read_tuning(TARGET))
    assert {key[0] for key in plan.candidates} == {"fp8-e4m3.one", "fp8-e4m3.rows"}
    assert "qkv.prompt64" in {name for name, why in plan.left_out if "bf16" in why}
    with pytest.raises(UsageError, match="no such kernel"):
        make_plan(shapes, TARGET, ("qkv.prompt64",), read_tuning(TARGET))


def test_an_operation_that_reads_nothing_that_rotates_is_refused_by_name() -> None:
    job = job_of("qkv.prompt64")
    ((launch, spec),) = job.operation.launches
    weightless = replace(launch, buffers=("hidden",) * len(launch.buffers))
    job = replace(job, operation=replace(job.operation, launches=((weightless, spec),)))
    found = time_candidate(job, Clockwork())
    assert found["status"] == "failed"
    assert found["reason"] == "qkv M=64: reads neither weights nor a cache, so nothing in it can rotate"


def test_a_choice_that_does_not_fit_the_shape_is_left_out_with_its_reason() -> None:
    plan = make_plan(H100, TARGET, ("qkv.one",), read_tuning(TARGET))
    assert ("qkv.one rows=1 width=1024 ahead=1", "width 1024 does not divide 2560") in plan.left_out


def test_a_kernel_tied_to_one_that_is_not_asked_for_keeps_what_they_share() -> None:
    alone = make_plan(H100, TARGET, ("output.rows",), read_tuning(TARGET))
    (family,) = alone.candidates.values()
    assert {candidate.tie for candidate in family} == {("rows: output and down", 16)}
    assert any("tied to down.rows" in why for _, why in alone.left_out)
    both = make_plan(H100, TARGET, ("output.rows", "down.rows"), read_tuning(TARGET))
    assert {c.tie[1] for c in both.all() if c.tie} == {16, 32, 64}


def test_a_candidate_is_timed_by_its_own_launch_alone() -> None:
    plan = make_plan(
        TINY, TARGET, ("attention.prompt256", "head.rows", "down.one"), EMPTY | {"tiles": ATTENTION}
    )
    found = {o.launches[0][0].kernel: o for o in (operation_of(c, TINY) for c in plan.all())}
    assert {name: (o.rows, len(o.launches)) for name, o in found.items()} == {
        "attention.prompt256": (256, 1),
        "head.rows": (8, 1),
        "down.one": (1, 1),
    }
    for candidate in plan.all():
        assert operation_of(candidate, TINY).launches[0][1] == candidate.spec


# One candidate.


def job_of(pattern: str) -> Job:
    plan = make_plan(TINY, TARGET, (pattern,), read_tuning(TARGET))
    candidate = plan.all()[-1]
    return Job(
        operation=operation_of(candidate, TINY),
        cubin=b"",
        sizes=TINY.sizes,
        rope_theta=TINY.rope_theta,
        seed=1,
        pace=Options(out=Path()).pace,
    )


@pytest.mark.parametrize("name", ["qkv.one", "down.rows", "gate_up.prompt64", "attention.prompt256"])
def test_a_candidate_that_is_right_is_timed_on_buffers_that_rotate(name: str) -> None:
    machine = Clockwork()
    machine.cache_bytes = 1 << 18
    found = time_candidate(job_of(name), machine)
    assert found["status"] == "passed" and len(found["samples_us"]) == 7 and found["median_us"] > 0
    assert found["rotated_bytes"] >= 3 * machine.cache_bytes and len(machine.recorded) == 1


def test_a_candidate_that_is_wrong_is_never_timed() -> None:
    machine = Clockwork(spoil=lambda spec, arrays: arrays["out"].mul_(1.5))
    found = time_candidate(job_of("qkv.one"), machine)
    assert found["status"] == "wrong" and "row 0 is off" in found["reason"] and "median_us" not in found
    assert machine.recorded == []


def test_a_device_that_fails_says_so_and_its_worker_is_given_up() -> None:
    machine = Clockwork()
    machine.faults = {"qkv.one"}
    found = time_candidate(job_of("qkv.one"), machine)
    assert (found["status"], found["device_failed"]) == ("failed", True)
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in found["reason"]


def test_a_candidate_that_is_right_on_its_first_case_only_is_not_proven() -> None:
    job = job_of("attention.prompt256")
    first, *others = cases_of(job.operation.launches[0][1])
    assert others and prove_candidate(job, Clockwork())["cases"] == 1 + len(others)

    class Later(Clockwork):
        def run(self, kernel: Any, spec: Any, case: Any, tensors: Any) -> None:
            super().run(kernel, spec, case, tensors)
            if case.name != first.name:
                tensors[-1].fill_(7)

    assert time_candidate(job, Later())["status"] == "passed"
    found = prove_candidate(job, Later())
    assert found["status"] == "wrong" and found["reason"].startswith(f"{others[0].name}: ")


# The search.


def test_a_winner_that_fails_another_case_is_out_and_the_next_best_is_taken(tmp_path: Path) -> None:
    done = search(tmp_path, tune_fakes.run_fastest_wrong_later, only=("qkv.one",))
    (kernel,), (entry,) = done["kernels"], done["entries"]
    by_rows = {found["tile"]["rows"]: found for found in kernel["candidates"]}
    assert by_rows[4]["status"] == "wrong" and "second case" in by_rows[4]["reason"]
    assert entry["tile"]["rows"] == 2 and entry["us"] == 8.0 and entry["replaced"]["us"] == 10.0


def test_a_lucky_time_wins_nothing_for_the_best_are_timed_again_in_turns(tmp_path: Path) -> None:
    done = search(tmp_path, tune_fakes.run_lucky_once, only=("qkv.one",))
    (kernel,) = done["kernels"]
    again = {f["tile"]["rows"]: f["turns_us"] for f in kernel["candidates"] if "turns_us" in f}
    assert again == {1: [10.0] * TURNS, 2: [8.0] * TURNS, 4: [11.0] * TURNS}
    assert kernel["winner"]["rows"] == 2 and (kernel["us"], kernel["before_us"]) == (8.0, 10.0)


def test_one_that_is_lost_when_it_is_timed_again_is_out(tmp_path: Path) -> None:
    done = search(tmp_path, tune_fakes.run_lost_in_turn, only=("qkv.one",))
    (kernel,) = done["kernels"]
    lost = [found for found in kernel["candidates"] if found["status"] == "lost"]
    assert {found["tile"]["rows"] for found in lost} == {4} and "SIGSEGV" in lost[0]["reason"]
    assert kernel["winner"]["rows"] == 2 and kernel["us"] == 8.0


def test_those_that_fail_make_room_for_others_until_none_is_left(tmp_path: Path) -> None:
    done = search(tmp_path, tune_fakes.run_none_right_later)
    (kernel,) = done["kernels"]
    assert done["entries"] == [] and done["error"]["exit_code"] == 5
    assert {found["status"] for found in kernel["candidates"]} == {"wrong"}


def test_the_fastest_that_passed_wins_whatever_the_others_do(tmp_path: Path) -> None:
    heard: list[str] = []
    done = search(tmp_path, tune_fakes.run_by_width, heard=heard)
    (kernel,) = done["kernels"]
    states = {(f["tile"]["stack"], f["tile"].get("occupancy")): f["status"] for f in kernel["candidates"]}
    assert [states[4, hint] for hint in (None, 2, 3)] == ["lost", "lost", "failed"]
    assert states[2, 3] == "wrong" and all(states[1, hint] == "passed" for hint in (None, 2, 3))
    reasons = {found["reason"] for found in kernel["candidates"] if found["status"] == "lost"}
    assert any("SIGSEGV" in reason for reason in reasons)
    assert any("did not end within 1 s" in reason for reason in reasons)
    (entry,) = done["entries"]
    widest = max(found["tile"]["width"] for found in kernel["candidates"] if found["status"] == "passed")
    assert entry["tile"]["width"] == widest and entry["tile"].get("occupancy") != 3
    assert entry["us"] == 20.0 - widest / 64
    assert entry["replaced"]["us"] == 18.0 and entry["replaced"]["tile"]["width"] == 128
    assert (entry["basis"], entry["samples"], entry["driver"]) == ("measured", 7, "580.1")
    assert entry["date"] == done["started"][:10]
    folder = tmp_path / done["run"]
    assert json.loads((folder / "tune.json").read_bytes())["entries"] == done["entries"]
    written = json.loads((folder / "sm_90.json").read_bytes())
    assert [e for e in written["tiles"] if key_of(e) == key_of(entry)] == [entry]
    assert [e for e in written["tiles"] if key_of(e) != key_of(entry)] == read_tuning(TARGET)["tiles"]


def test_a_tie_keeps_what_is_chosen_now(tmp_path: Path) -> None:
    done = search(tmp_path, tune_fakes.run_evenly, only=("qkv.one",))
    (entry,), (kernel,) = done["entries"], done["kernels"]
    assert entry["replaced"] is None and not kernel["changed"]
    assert entry["tile"] == kernel["candidates"][0]["tile"] and kernel["candidates"][0]["current"]


def test_a_candidate_that_spills_is_refused_and_not_run(tmp_path: Path) -> None:
    done = search(tmp_path, tune_fakes.run_by_width, refuse=lambda tile: tile.get("width", 0) > 64)
    (kernel,) = done["kernels"]
    refused = [found for found in kernel["candidates"] if found["tile"]["width"] > 64]
    assert refused and all(f["status"] == "refused" and "spill" in f["reason"] for f in refused)
    (entry,) = done["entries"]
    assert entry["tile"]["width"] == 64 and entry["replaced"]["us"] is None  # the one before was refused too


def test_a_kernel_without_any_that_passed_keeps_its_entry_and_fails_the_search(tmp_path: Path) -> None:
    done = search(tmp_path, tune_fakes.run_wrong, only=("qkv.one",))
    assert done["entries"] == [] and done["error"]["exit_code"] == 5
    assert "no candidate passed for qkv.one" in done["error"]["message"]
    written = json.loads((tmp_path / done["run"] / "sm_90.json").read_bytes())
    assert written["tiles"] == read_tuning(TARGET)["tiles"]


def test_a_second_search_tries_nothing_again_and_finds_the_same(tmp_path: Path) -> None:
    first = search(tmp_path, tune_fakes.run_by_width)
    heard: list[str] = []
    tried = [found["status"] for found in first["kernels"][0]["candidates"]]
    settled = tried.count("passed") + tried.count("wrong")
    second = search(tmp_path, tune_fakes.run_by_width, heard=heard)
    assert (
        heard[0]
        == f"{len(first['kernels'][0]['candidates'])} candidates, 27 compiled, {settled} tried before"
    )
    assert second["entries"] == first["entries"] and second["run"] != first["run"]
    finalists = [found for found in second["kernels"][0]["candidates"] if "turns_us" in found]
    again = [line for line in heard if " again: " in line]  # for yesterday's times are not today's
    assert len(again) == TURNS * len(finalists) > 0


def test_what_was_lost_or_failed_once_is_tried_again_by_the_next_search(tmp_path: Path) -> None:
    first = search(tmp_path, tune_fakes.run_by_width)
    again = search(tmp_path, tune_fakes.run_evenly)
    for before, after in zip(*(done["kernels"][0]["candidates"] for done in (first, again)), strict=True):
        unsettled = before["status"] in ("lost", "failed")
        assert (after["status"], after.get("median_us")) == (
            ("passed", 10.0) if unsettled else (before["status"], before.get("median_us"))
        )
    assert {f["status"] for f in first["kernels"][0]["candidates"]} == {"passed", "wrong", "lost", "failed"}


@pytest.mark.parametrize("run", [tune_fakes.run_current_lost, tune_fakes.run_current_failed])
def test_a_kernel_whose_current_choice_was_lost_or_failed_keeps_it_and_says_why(
    tmp_path: Path, run: Callable[[Job], dict[str, Any]]
) -> None:
    done = search(tmp_path, run, only=("qkv.one",))
    (kernel,) = done["kernels"]
    current, *others = kernel["candidates"]
    assert others and {found["status"] for found in others} == {"passed"}
    assert kernel["kept"] == f"the current choice {current['status']}: {current['reason']}"
    assert done["entries"] == [] and done["status"] == "passed" and not kernel["changed"]
    assert kernel["kept"] in str(tune_tables(done)[0].rows)


def test_a_kernel_tied_to_one_that_is_kept_keeps_what_they_share() -> None:
    times: dict[str, float] = {}
    families = {
        OUTPUT: family(OUTPUT, (16, 0.0), (32, 4.0), times=times),
        DOWN: family(DOWN, (16, 10.0), (32, 1.0), (16, 5.0), times=times),
    }
    chosen = choose(families, times, {OUTPUT: "lost"})
    assert set(chosen) == {DOWN} and chosen[DOWN].us == 5.0


@pytest.mark.parametrize("change", ["seed", "driver", "source", "timing", "pace"])
def test_a_search_for_something_else_starts_anew(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(tmp_path, tune_fakes.run_evenly, only=("qkv.one",))
    more: dict[str, Any] = {}
    if change == "seed":
        more["seed"] = 2
    elif change == "driver":
        more["gpu"] = tune_fakes.GPU | {"driver_release": "590.1"}
    elif change == "timing":
        monkeypatch.setattr(
            "lean.toolchain.tune.run.timing_sources", lambda: {"lean/toolchain/chip/pace.py": "0"}
        )
    elif change == "pace":
        more["pace"] = Pace(samples=7, seconds=0.5)
    else:
        monkeypatch.setattr("lean.toolchain.tune.run.kernel_sources", lambda target: {"kernels/x.py": "0"})
    heard: list[str] = []
    search(tmp_path, tune_fakes.run_evenly, only=("qkv.one",), heard=heard, **more)
    assert heard[0].endswith("0 tried before")
    assert (tmp_path / "journal-tiny-cpu-sm_90.jsonl.old").is_file()


@pytest.mark.slow
def test_a_journal_cut_anywhere_costs_the_candidate_that_was_cut_and_those_behind_it(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", tune_fakes.run_evenly, only=("qkv.one",))
    text = (tmp_path / "whole" / "journal-tiny-cpu-sm_90.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(text) if byte == 10]
    cuts = {0: 0, ends[0] // 2: 0, ends[0]: 0, ends[1] - 1: 0, ends[1]: 1, ends[2] - 5: 1, len(text): 3}
    for cut, kept in cuts.items():
        out = tmp_path / str(cut)
        out.mkdir()
        (out / "journal-tiny-cpu-sm_90.jsonl").write_bytes(text[:cut])
        heard: list[str] = []
        again = search(out, tune_fakes.run_evenly, only=("qkv.one",), heard=heard)
        assert heard[0] == f"3 candidates, 3 compiled, {kept} tried before", cut
        assert again["entries"] == whole["entries"]
        assert (out / "journal-tiny-cpu-sm_90.jsonl").read_bytes() == text


def test_a_gpu_that_goes_away_ends_the_search_and_is_no_candidate_s_fault(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"the GPU is no longer there: .* fell off the bus"):
        search(tmp_path, tune_fakes.run_without_gpu, only=("output.one",))
    heard: list[str] = []
    done = search(tmp_path, tune_fakes.run_evenly, only=("output.one",), heard=heard)
    states = {found["status"] for found in done["kernels"][0]["candidates"]}
    assert states == {"passed"} and not heard[0].endswith(" 0 tried before")


def test_a_search_on_a_machine_that_throttled_is_invalid_and_chooses_nothing(tmp_path: Path) -> None:
    only = ("qkv.one",)
    done = search(tmp_path, tune_fakes.run_fastest_wrong_later, only=only, read_state=hotter())
    assert (done["status"], done["error"]["exit_code"], done["entries"]) == ("invalid", 7, [])
    assert "package_throttle_count rose by 1" in done["error"]["message"]
    assert json.loads((tmp_path / done["run"] / "tune.json").read_bytes())["clocks"] == done["clocks"]
    heard: list[str] = []
    again = search(tmp_path, tune_fakes.run_fastest_wrong_later, only=only, heard=heard)
    assert heard[0].endswith(" 0 tried before") and again["status"] == "passed" and again["entries"]


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import tune_fakes; from test_toolchain_tune import search\n"
        "if __name__ == '__main__': search(Path(sys.argv[1]), tune_fakes.run_slowly)"
    )
    script = tmp_path / "search.py"
    script.write_text(code)
    places = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/lean")))
    child = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": places},
        start_new_session=True,
    )
    journal = tmp_path / "out" / "journal-tiny-cpu-sm_90.jsonl"
    deadline = time.monotonic() + 60
    while len(read_journal(journal)[1]) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    kept = len(read_journal(journal)[1])
    assert kept >= 3
    heard: list[str] = []
    done = search(tmp_path / "out", tune_fakes.run_evenly, heard=heard)
    assert heard[0] == f"27 candidates, 27 compiled, {kept} tried before" and len(done["entries"]) == 1


# What wins.


def family(key: Key, *choices: tuple[int, float], times: dict[str, float]) -> tuple[Candidate, ...]:
    """Candidates of a made-up kernel by tied value and time; the first is the current one."""
    (spec,) = (s for s in kernel_specs(TINY.sizes, Tiles(TARGET, {})) if s.name == "qkv.one")
    made = []
    for number, (value, us) in enumerate(choices):
        candidate = Candidate(
            key=key,
            tile={"rows": value, "width": 64 + number},
            spec=replace(spec, name=f"{key[1]}.{number}"),
            current=number == 0,
            tie=("output and down", value),
        )
        made.append(candidate)
        if us:
            times[candidate.digest] = us
    return tuple(made)


OUTPUT, DOWN = ("rows", "output", "1", "1"), ("rows", "down", "1", "1")


def test_tied_kernels_take_the_value_that_is_best_for_both() -> None:
    times: dict[str, float] = {}
    families = {
        OUTPUT: family(OUTPUT, (16, 10.0), (32, 4.0), (64, 7.0), times=times),
        DOWN: family(DOWN, (16, 10.0), (32, 20.0), (64, 9.0), times=times),
    }
    chosen = choose(families, times)
    assert {key: c.winner.tile["rows"] for key, c in chosen.items() if c.winner.tile} == {
        OUTPUT: 64,
        DOWN: 64,
    }
    assert chosen[OUTPUT].replaced_us == 10.0 and chosen[DOWN].us == 9.0


def test_a_value_that_one_of_the_tied_has_no_working_candidate_of_is_ruled_out() -> None:
    times: dict[str, float] = {}
    families = {
        OUTPUT: family(OUTPUT, (16, 10.0), (32, 1.0), times=times),
        DOWN: family(DOWN, (16, 10.0), (32, 0.0), times=times),
    }
    assert all(choice.winner.current for choice in choose(families, times).values())


def test_less_than_a_percent_is_chance_and_more_is_a_gain() -> None:
    for us, wins in ((9.95, False), (9.85, True)):
        times: dict[str, float] = {}
        families = {OUTPUT: family(OUTPUT, (16, 10.0), (16, us), times=times)}
        (choice,) = choose(families, times).values()
        assert choice.winner.current != wins and choice.us == (us if wins else 10.0)


def test_a_current_choice_that_failed_gives_way_to_any_that_passed() -> None:
    times: dict[str, float] = {}
    families = {OUTPUT: family(OUTPUT, (16, 0.0), (32, 50.0), times=times)}
    (choice,) = choose(families, times).values()
    assert (choice.us, choice.replaced_us, choice.winner.current) == (50.0, None, False)
    assert choose({OUTPUT: family(OUTPUT, (16, 0.0), times={})}, {}) == {}


# Compiling ahead.


def test_candidates_compile_apart_and_one_that_crashes_or_hangs_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_compile, "toolchain_for", lambda *_: TOOLS)
    plan = make_plan(H100, TARGET, ("qkv.one",), read_tuning(TARGET))
    kept = replace(plan, candidates={key: f[:1] + f[1:9] for key, f in plan.candidates.items()})
    words = {"workers": 2, "work": tune_fakes.compile_job, "seconds": 1.0}
    heard: list[str] = []
    built = tune_compile.compile_plan(kept, H100, tmp_path / "c", heard.append, **words)
    by_ahead = {
        dict(c.spec.constants)["AHEAD"]: built[c.digest].get("reason", built[c.digest]["status"])
        for c in kept.all()
    }
    assert "SIGSEGV" in by_ahead[2] and "did not end within 1 s" in by_ahead[3]
    assert by_ahead[4].startswith("registers spill") and by_ahead[1] == by_ahead[5] == "compiled"
    states = {dict(c.spec.constants)["AHEAD"]: built[c.digest]["status"] for c in kept.all()}
    assert [states[ahead] for ahead in (1, 2, 3, 4, 5)] == ["compiled", "lost", "lost", "refused", "compiled"]
    lost = [entry["status"] for entry in built.values()].count("lost")
    again: list[str] = []
    rebuilt = tune_compile.compile_plan(kept, H100, tmp_path / "c", again.append, **words)
    assert again[0] == f"{TARGET}: {lost} candidates to compile, 2 at a time"
    assert {d: e for d, e in rebuilt.items() if e["status"] != "lost"} == {
        d: e for d, e in built.items() if e["status"] != "lost"
    }
    assert tune_compile.folder_contract(tmp_path / "c", H100.id) == H100
    entries, tools = tune_compile.read_plan(kept, tmp_path / "c")
    assert entries == rebuilt and tools == {"tileiras": "1"}


@pytest.mark.parametrize(
    ("stage", "code", "status"),
    [("bytecode", None, "refused"), ("cubin", 1, "refused"), ("cubin", -11, "lost"), ("cubin", None, "lost")],
)
def test_a_compiler_that_was_killed_or_ran_too_long_refused_nothing(
    stage: str, code: int | None, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels import aot, build

    def fail(*words: Any) -> None:
        raise build.BuildFailed("kernel x: no") from aot.StageFailed(stage, "no", code)

    monkeypatch.setattr(build, "build_kernel", fail)
    spec = make_plan(TINY, TARGET, ("qkv.one",), read_tuning(TARGET)).all()[0].spec
    found = tune_compile.compile_candidate(tune_compile.Job(tools=None, spec=spec, target=TARGET))
    assert found == {"status": status, "reason": "kernel x: no"}


def test_candidates_of_another_chip_contract_or_source_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_compile, "toolchain_for", lambda *_: TOOLS)
    plan = make_plan(TINY, TARGET, ("qkv.one",), read_tuning(TARGET))
    nothing = replace(plan, candidates={})
    tune_compile.compile_plan(nothing, TINY, tmp_path, lambda line: None, workers=1)
    with pytest.raises(UsageError, match="is for sm_90, the GPU is sm_121"):
        tune_compile.read_plan(replace(nothing, target="sm_121"), tmp_path)
    with pytest.raises(UsageError, match="is for contract tiny-cpu, not other"):
        tune_compile.folder_contract(tmp_path, "other")
    with pytest.raises(UsageError, match="no candidates; make them with"):
        tune_compile.folder_contract(tmp_path / "nowhere", "tiny-cpu")
    monkeypatch.setattr(tune_compile, "kernel_sources", lambda target: {"kernels/products.py": "0"})
    with pytest.raises(IntegrityError, match="compiled from another"):
        tune_compile.read_plan(nothing, tmp_path)
    candidate = plan.all()[0]
    (tmp_path / f"{candidate.digest}.cubin").write_bytes(b"other")
    with pytest.raises(IntegrityError, match="not the file that was compiled"):
        tune_compile.read_cubin(tmp_path, candidate, {"sha256": "0" * 64})


# Bad input.


def test_unknown_kernels_are_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--only: nothing\.\*: no such kernel; expected some of qkv\.one"):
        search(tmp_path, tune_fakes.run_evenly, only=("nothing.*",))
    assert list(tmp_path.iterdir()) == []


def test_a_tuning_file_of_another_chip_or_none_at_all_is_refused_or_empty(tmp_path: Path) -> None:
    assert read_tuning("sm_90", tmp_path)["tiles"] == []
    for text in ('{"target": "sm_121", "tiles": []}', "{", '{"target": "sm_90", "tiles": [{"path": "one"}]}'):
        (tmp_path / "sm_90.json").write_text(text)
        with pytest.raises(IntegrityError, match=r"sm_90\.json: no tuning file for sm_90"):
            read_tuning("sm_90", tmp_path)


def test_a_machine_without_a_gpu_ends_with_the_preflight_s_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PreflightError, match=r"no GPU to tune for: no GPU: libcuda .*; --compile-only"):
        needed_gpu("to tune for", "--compile-only needs none", tune_fakes.no_gpu)
    monkeypatch.setattr(find, "needed_gpu", lambda *words: needed_gpu(*words, tune_fakes.no_gpu))
    words = ["tune", "--contract", "tiny-cpu", "--out", str(tmp_path / "out")]
    assert run_program(main, words) == 4
    assert "no GPU to tune for" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert run_program(main, [*words, "--compile-only", "--kernels", "x"]) == 1
    assert run_program(main, [*words, "--target", "sm_90"]) == 1
    assert run_program(main, [*words, "--limit-s", "0"]) == 1


def test_a_journal_is_one_line_for_each_thing_and_a_torn_one_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, {"about": 1}) as journal:
        journal.add("a", {"x": 1})
        journal.add("b", {"x": 2})
    path.write_bytes(path.read_bytes() + b'{"key": "c", "x"')
    header, entries, whole = read_journal(path)
    assert header == {"about": 1} and set(entries) == {"a", "b"} and whole < path.stat().st_size
    with Journal(path, {"about": 1}) as journal:
        journal.add("c", {"x": 3})
    assert [json.loads(line).get("key") for line in path.read_text().splitlines()] == [None, "a", "b", "c"]


def test_a_journal_has_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, {"about": 1}) as journal:
        with pytest.raises(PreflightError, match="another process writes it; wait for its end"):
            Journal(path, {"about": 2})
        journal.add("a", {"x": 1})
    with Journal(path, {"about": 1}) as again:
        assert set(again.entries) == {"a"}


def test_a_journal_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match="give a writable --out"):
        Journal(tmp_path / "file" / "j", {"about": 1})


def test_candidates_lie_in_a_folder_of_their_contract_and_chip(tmp_path: Path) -> None:
    search(tmp_path, tune_fakes.run_evenly, only=("qkv.one",))
    assert list((tmp_path / "candidates/tiny-cpu-sm_90").glob("*.cubin"))


# Written back.


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    (root / "kernels/tuning").mkdir(parents=True)
    (root / "kernels/tuning/sm_90.json").write_bytes((ROOT / "kernels/tuning/sm_90.json").read_bytes())
    (root / "kernel.py").write_text("x = 1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a kernel"]):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(root), *identity, *words], check=True)
    return root


def kept_document(folder: Path, **changes: Any) -> Path:
    done = search(folder / "out", tune_fakes.run_by_width) | changes
    done["sources"] = {"kernel.py": hashlib.sha256(b"x = 1\n").hexdigest()}
    (folder / "tune.json").write_text(json.dumps(done))
    return folder / "tune.json"


def test_winners_are_written_back_with_their_measurement_and_others_stay(
    checkout: Path, tmp_path: Path
) -> None:
    before = json.loads((checkout / "kernels/tuning/sm_90.json").read_bytes())
    file = kept_document(tmp_path)
    done = keep(file, host="h100", root=checkout)
    after = json.loads((checkout / done["tuning"]).read_bytes())
    (entry,) = json.loads(file.read_bytes())["entries"]
    assert after["tiles"] == [*before["tiles"], entry] and after["about"] == before["about"]
    record = checkout / done["record"]
    assert record.parent.parent == checkout / "results/v1/h100/tune"
    page = (record.parent / "report.md").read_text()
    assert "| qkv.rows | 1024 256 | 18.00 |" in page and "SIGSEGV" in page
    specs = kernel_specs(TINY.sizes, Tiles(TARGET, _entries(after)))
    assert next(s for s in specs if s.name == "qkv.rows").arrays[0].shape[1] == entry["tile"]["stack"]


def test_a_keep_that_was_cut_short_is_finished_by_the_next_one(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, tuning = kept_document(tmp_path), checkout / "kernels/tuning/sm_90.json"
    before = tuning.read_bytes()

    def full(*words: Any) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr("lean.toolchain.records.write_tuning", full)
        with pytest.raises(OSError, match="no space"):
            keep(file, host="h100", root=checkout)
    assert tuning.read_bytes() == before and not (checkout / "results").exists()
    with monkeypatch.context() as patch:
        patch.setattr("lean.toolchain.records.write_whole", full)
        with pytest.raises(OSError, match="no space"):
            keep(file, host="h100", root=checkout)
    assert not (checkout / "results").exists()
    done = keep(file, host="h100", root=checkout)
    written = tuning.read_bytes()
    assert written != before and (checkout / done["record"]).is_file()
    assert keep(file, host="h100", root=checkout) == done and tuning.read_bytes() == written


def test_a_choice_that_changed_since_it_was_measured_is_not_overwritten(
    checkout: Path, tmp_path: Path
) -> None:
    file = kept_document(tmp_path)
    (entry,) = json.loads(file.read_bytes())["entries"]
    path = checkout / "kernels/tuning/sm_90.json"
    other = entry | {"tile": {"rows": 64, "stack": 1, "width": 64, "ahead": 2, "occupancy": 7}}
    path.write_text(json.dumps(merged(json.loads(path.read_bytes()), [other])))
    with pytest.raises(IntegrityError, match=r"sm_90\.json: rows qkv \[1024, 256\] is .* tune again"):
        keep(file, host="h100", root=checkout)
    assert not (checkout / "results").exists()
    path.write_text(json.dumps({"target": "sm_121", "tiles": []}))
    with pytest.raises(IntegrityError, match="no tuning file for sm_90"):
        keep(file, host="h100", root=checkout)
    (checkout / "kernel.py").write_text("x = 2\n")
    with pytest.raises(IntegrityError, match="is not what this tune is about"):
        keep(file, host="h100", root=checkout)


def test_an_entry_keeps_its_place_when_it_is_replaced() -> None:
    tuning = read_tuning(TARGET)
    first, second, *rest = tuning["tiles"]
    new = first | {"tile": {"rows": 2, "width": 256}, "replaced": {"tile": first["tile"], "us": 1.0}}
    check_replaces(tuning, [new], "here")
    assert merged(tuning, [new])["tiles"] == [new, second, *rest]
    check_replaces(merged(tuning, [new]), [new], "here")  # kept twice is the same
