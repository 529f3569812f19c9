"""Whole runs: from the command line against the scripted service, down to the record on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lean.bench import measure, store
from lean.bench.__main__ import main
from lean.bench.client import ClientSettings
from lean.bench.host_state import HostState
from lean.bench.in_process_file import NOT_GIVEN
from lean.bench.journal import Journal, record_bytes
from lean.bench.measure import BenchPlan, run_bench
from lean.bench.plot import draw_plot
from lean.bench.record import PackFacts, Release, read_run
from lean.bench.results import list_runs
from lean.bench.sample import Sample
from lean.cli import run_program
from lean.contracts import contract_sha256, encoded_contract, from_data, load_contract, load_profile, to_data
from lean.errors import ContractError, UsageError
from lean.host_facts import host_id
from lean.in_process import InProcess, ReadBandwidth
from lean.leanpack import open_pack
from lean.leanpack.build import BuildRequest, build_pack

ROOT = Path(__file__).resolve().parents[3]
SHA = "89abcdef0123456789abcdef0123456789abcdef"
RUNNER = {"name": "scripted", "device": "cpu", "compute_dtype": "float32", "slots": 1}


def test_a_fair_run_leaves_its_record_and_prints_where(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = bench.run(capsys)
    assert code == 0 and document["status"] == "ok" and document["reasons"] == []
    record = read_run(Path(document["run"]))
    assert Path(document["run"]) == bench.results / document["place"]
    assert record.fairness.fair
    assert [sample.phase for sample in record.samples] == ["warmup"] + ["measured"] * 3
    assert {(s.usage_prompt_tokens, s.usage_completion_tokens) for s in record.samples} == {(1024, 64)}
    assert record.backend is not None
    assert (record.backend.name, record.backend.operator_coverage) == ("scripted", 0.5)
    assert (record.release.git_sha, record.release.dirty) == (SHA, True)
    assert record.id.endswith("-89abcde-dirty")
    assert record.state_before is not None and record.state_after is not None
    assert record.host_facts["schema"] == "host_facts/v1"
    assert document["metrics"]["ttft_s"]["count"] == 3
    assert [prompt.tokens for prompt in record.prompts] == [1024] * 4
    assert [p.ids_sha256 for p in record.prompts] == [s.prompt_sha256 for s in record.samples]


def of_this_run(pack: Path, make_in_process: Callable[..., InProcess], **changes: Any) -> InProcess:
    """A document measured nine seconds before the service started, with all that the run has."""
    return make_in_process(
        lock=open_pack(pack).lock,
        profile=load_profile("prefill_1024_64"),
        runner=RUNNER,
        host=host_id(),
        finished_utc="2026-01-02T10:00:00.000+00:00",
        **changes,
    )


def test_a_stale_document_is_left_out_and_the_record_says_why(
    bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, pack: Path, make_in_process: Any
) -> None:
    found = of_this_run(pack, make_in_process)
    file = tmp_path / "in_process.json"
    file.write_text(json.dumps(to_data(dataclasses.replace(found, finished_utc="2026-01-01T10:00:00+00:00"))))
    code, document = bench.run(capsys, in_process=str(file))
    record = read_run(Path(document["run"]))
    assert (code, record.in_process, record.metrics.bandwidth_basis) == (0, None, None)
    assert (
        record.no_in_process is not None
        and "measured 86409 s before the service's start" in record.no_in_process
    )
    assert "not used, in_process.json" in (Path(document["run"]) / "log.txt").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"release": "of last week"}, "release of last week, this run has r"),
        ({"host": "ba9876543210"}, "host ba9876543210, this run has"),
        ({"runner": RUNNER | {"slots": 8}}, "slots 8, this run has 1"),
    ],
)
def test_a_document_of_other_code_another_host_or_other_slots_ends_the_run(
    bench: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    pack: Path,
    make_in_process: Any,
    changes: dict[str, Any],
    words: str,
) -> None:
    file = tmp_path / "in_process.json"
    file.write_text(json.dumps(to_data(dataclasses.replace(of_this_run(pack, make_in_process), **changes))))
    code, document = bench.run(capsys, in_process=str(file))
    assert code == 2 and words in document["error"]["message"]


def test_the_record_holds_what_was_measured_in_process_or_why_nothing_was(
    bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, pack: Path, make_in_process: Any
) -> None:
    found = of_this_run(pack, make_in_process)
    file = tmp_path / "in_process.json"
    file.write_text(json.dumps(to_data(found)))
    code, document = bench.run(capsys, in_process=str(file))
    record = read_run(Path(document["run"]))
    assert (code, record.in_process, record.no_in_process) == (0, found, None)
    assert record.metrics.bandwidth_basis == "measured" and record.metrics.bandwidth_gbs == 3000.0
    code, document = bench.run(capsys, no_in_process="the torch runner is measured over HTTP only")
    record = read_run(Path(document["run"]))
    assert (code, record.in_process) == (0, None)
    assert record.no_in_process == "the torch runner is measured over HTTP only"
    code, document = bench.run(capsys)
    assert read_run(Path(document["run"])).no_in_process == NOT_GIVEN


def test_a_bandwidth_that_a_cache_may_have_given_is_kept_and_not_used(
    bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, pack: Path, make_in_process: Any
) -> None:
    found = of_this_run(
        pack,
        make_in_process,
        read_bandwidth=ReadBandwidth(read_bytes=1 << 20, launches=1, replays=3, seconds=(1e-6,), gbs=9e3),
    )
    file = tmp_path / "in_process.json"
    file.write_text(json.dumps(to_data(found)))
    code, document = bench.run(capsys, in_process=str(file))
    record = read_run(Path(document["run"]))
    assert (code, record.in_process, record.metrics.bandwidth_basis) == (0, found, None)


@pytest.mark.parametrize("how", ["missing", "torn", "of another pack"])
def test_a_document_that_is_not_of_this_run_ends_it_before_a_request_goes_out(
    bench: Any,
    service: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    make_in_process: Any,
    how: str,
) -> None:
    file = tmp_path / "in_process.json"
    text = json.dumps(to_data(make_in_process()))
    if how != "missing":
        file.write_text(text if how == "of another pack" else text[:-9])
    code, document = bench.run(capsys, in_process=str(file))
    assert code == 2 and str(file) in document["error"]["message"]
    record = read_run(Path(document["run"]))
    assert record.status == "failed" and record.in_process is None and service.script.bodies == []


def test_the_streams_of_a_batch_run_together_round_by_round(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = bench.run(capsys, profile="decode_64_256_b2")
    assert code == 0
    record = read_run(Path(document["run"]))
    for turn in range(3):
        pair = [s for s in record.samples if s.phase == "measured" and s.round == turn]
        assert [sample.stream for sample in pair] == [0, 1]
        assert max(s.sent_ns for s in pair) < min(s.end_ns for s in pair)
        earlier = [s.end_ns for s in record.samples if s.phase == "warmup" or s.round < turn]
        assert max(earlier[: 2 + 2 * turn]) < min(s.sent_ns for s in pair)


def test_prompts_can_go_out_as_text(bench: Any, service: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = bench.run(capsys, prompt="text")
    assert (
        code == 7
    )  # the scripted service counts words, so its prompt count is wrong, and the gate sees that
    assert all(isinstance(body["prompt"], str) for body in service.script.bodies)
    assert any("prompt is exactly 1024 tokens" in reason for reason in document["reasons"])


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"tokens_off": -1}, "the server counted 63"),
        ({"completion_tokens_off": 1}, "the server counted 65"),
        ({"prompt_tokens_off": -1}, "the server counted 1023"),
        ({"usage": False}, "reported no prompt_tokens"),
        ({"finish_reason": "stop"}, "'stop', not 'length'"),
    ],
)
def test_an_unfair_run_ends_with_7_and_still_leaves_its_record(
    bench: Any, service: Any, capsys: pytest.CaptureFixture[str], script: dict[str, Any], reason: str
) -> None:
    for name, value in script.items():
        setattr(service.script, name, value)
    code, document = bench.run(capsys)
    assert code == 7
    assert document["error"]["kind"] == "InvalidRunError" and reason in document["error"]["message"]
    record = read_run(Path(document["run"]))
    assert record.status == "invalid" and not record.fairness.fair
    assert record.label == "exploratory" and "fairness gate not passed" in record.label_reasons


def test_a_service_that_breaks_while_measured_is_unfair_and_recorded(
    bench: Any, service: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_then_read() -> HostState:
        service.script.cut_after = 5
        return real()

    real = measure.read_host_state
    monkeypatch.setattr(measure, "read_host_state", break_then_read)
    code, document = bench.run(capsys)
    assert code == 7
    samples = read_run(Path(document["run"])).samples
    assert [sample.error is None for sample in samples] == [True, False]  # the rest was not tried
    assert samples[1].counted_tokens == 5


def test_a_throttled_run_is_invalid_and_says_so(
    bench: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter(range(2))

    def hotter() -> HostState:
        counts = {"cpu0 core_throttle_count": next(readings)}
        return dataclasses.replace(real(), throttle_counts=counts)

    real = measure.read_host_state
    monkeypatch.setattr(measure, "read_host_state", hotter)
    code, document = bench.run(capsys)
    assert code == 7 and "throttled: cpu0" in document["error"]["message"]
    record = read_run(Path(document["run"]))
    assert record.status == "invalid" and record.fairness.fair and record.throttled
    assert "INVALID" in (Path(document["run"]) / "report.md").read_text().splitlines()[0]


def absent(bench: Any) -> dict[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return {"url": f"http://127.0.0.1:{free.getsockname()[1]}"}


@pytest.mark.parametrize("missing", ["service", "ready document"])
def test_a_service_that_is_not_there_ends_with_6_and_a_failed_record(
    bench: Any, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    if missing == "service":
        changes = absent(bench)
    else:
        bench.ready.unlink()
        changes = {}
    code, document = bench.run(capsys, **changes)
    assert code == 6 and document["error"]["kind"] == "NotReadyError"
    record = read_run(Path(document["run"]))
    assert record.status == "failed" and record.samples == ()
    assert [row.status for row in list_runs(bench.results).rows] == ["failed"]


@pytest.mark.parametrize(("status", "code"), [(503, 6), (500, 7), (400, 7)])
def test_a_warm_up_that_fails_ends_the_run(
    bench: Any, service: Any, capsys: pytest.CaptureFixture[str], status: int, code: int
) -> None:
    service.script.status = status
    found, document = bench.run(capsys)
    assert found == code and f"HTTP {status}: the model fell over" in document["error"]["message"]
    record = read_run(Path(document["run"]))
    assert record.status == "failed" and len(record.samples) == 1
    assert record.label_reasons[-1] == "fairness gate not passed"


def test_another_pack_than_the_one_served_is_refused_and_recorded(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(bench.ready.read_text())
    bench.ready.write_text(json.dumps(document | {"lock": "0" * 64}))
    code, document = bench.run(capsys)
    assert code == 2 and "the service serves pack 00000000, not" in document["error"]["message"]
    assert read_run(Path(document["run"])).status == "failed"


def test_a_pack_of_another_contract_is_refused(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = bench.run(capsys, contract="qwen3-4b-base-bf16-h100")
    assert code == 2 and "build the pack again" in document["error"]["message"]


@pytest.fixture(scope="session")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in four bits."""
    contract = encoded_contract(load_contract("tiny-cpu"), "nvfp4")
    request = BuildRequest(
        model=ROOT / "lean/demo/checkpoint",
        contract=contract,
        packs=tmp_path_factory.mktemp("coded"),
        encoding="nvfp4",
        target="cpu",
    )
    return Path(build_pack(request).path)


@pytest.mark.parametrize("status", ["not needed", "cleared", "not cleared"])
def test_an_encoded_pack_is_measured_under_a_contract_of_its_own_and_never_official(
    bench: Any, capsys: pytest.CaptureFixture[str], coded: Path, status: str
) -> None:
    served = json.loads(bench.ready.read_text()) | {"lock": open_pack(coded).lock, "gate": {"status": status}}
    bench.ready.write_text(json.dumps(served))
    code, document = bench.run(capsys, pack=str(coded))
    record = read_run(Path(document["run"]))
    assert (code, record.contract.id, record.label) == (0, "tiny-cpu-nvfp4", "exploratory")
    assert record.place.parts[:3] == ("v1", "loopback", "prefill_1024_64")
    assert "encoding nvfp4 changes the checkpoint's weights" in record.label_reasons
    uncleared = "the host's precision gate has not cleared nvfp4" in record.label_reasons
    assert uncleared == (status == "not cleared")


def test_an_encoded_pack_of_another_model_is_refused(
    bench: Any, capsys: pytest.CaptureFixture[str], coded: Path
) -> None:
    code, document = bench.run(capsys, pack=str(coded), contract="qwen3-4b-base-bf16-h100")
    assert code == 2 and "qwen3-4b-base-bf16-h100-nvfp4 has" in document["error"]["message"]


def test_a_pack_that_is_none_is_an_integrity_failure(
    bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, document = bench.run(capsys, pack=str(tmp_path))
    assert code == 8
    record = read_run(Path(document["run"]))
    assert record.pack is None and record.label_reasons == ("no pack was opened",)


def test_settings_of_the_command_line_make_a_run_exploratory(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = bench.run(capsys, requests="4", warmup="1")
    assert code == 0
    record = read_run(Path(document["run"]))
    assert record.overridden == ("requests",) and record.profile.requests == 4
    assert "overridden: requests" in record.label_reasons


@pytest.mark.parametrize(
    ("changes", "code", "problem"),
    [
        ({"requests": "2"}, 2, "requests: expected at least 3, got 2"),
        ({"warmup": "0"}, 2, "warmup_requests: expected at least 1"),
        ({"profile": "nothing"}, 2, "no bench named 'nothing'"),
        ({"contract": "nothing"}, 2, "no contract named 'nothing'"),
        ({"host_name": "../up"}, 1, "--host-name"),
        ({"requests": "many"}, 1, "--requests"),
        ({"release": "/nonexistent"}, 2, "/nonexistent: cannot be read"),
    ],
)
def test_a_wrong_command_line_is_named_and_leaves_no_record(
    bench: Any, capsys: pytest.CaptureFixture[str], changes: dict[str, str], code: int, problem: str
) -> None:
    found, document = bench.run(capsys, **changes)
    assert found == code and problem in document["error"]["message"]
    assert not bench.results.exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"id": "r", "git_sha": "xyz", "dirty": False}, "git_sha"),
        ({"id": "r", "git_sha": SHA}, "dirty: expected bool, got None"),
        ({"git_sha": SHA, "dirty": False}, "id: expected str"),
        ([], "expected a JSON object"),
    ],
)
def test_a_wrong_release_document_is_named(bench: Any, tmp_path: Path, content: Any, problem: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ContractError, match=problem) as caught:
        main(bench.argv(release=str(file)))
    assert str(file) in str(caught.value)


def test_the_token_appears_nowhere_in_the_record(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, document = bench.run(capsys)
    for file in Path(document["run"]).iterdir():
        assert b"canary-bearer-token" not in file.read_bytes(), file.name


def test_a_stopped_run_records_what_it_has_and_ends_with_130(bench: Any, service: Any) -> None:
    service.script.hang_after = 5
    command = [sys.executable, "-m", "lean.bench", *bench.argv(read_timeout="30")]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            deadline = time.monotonic() + 60
            while not service.script.bodies:
                assert child.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            child.send_signal(signal.SIGTERM)
            out, _ = child.communicate(timeout=60)
        finally:
            child.kill()
    document = json.loads(out)
    assert child.returncode == 130 and document["error"]["kind"] == "Interrupted"
    record = read_run(Path(document["run"]))
    assert record.status == "failed"
    (sample,) = record.samples  # it was in flight
    assert sample.error == "interrupted" and not sample.finished


def test_a_bug_is_recorded_and_keeps_its_own_exception(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(measure, "open_tokenizer", broken)
    with pytest.raises(ZeroDivisionError):
        main(bench.argv())
    (row,) = list_runs(bench.results).rows
    assert (row.status, row.note) == ("failed", "a bug")


def test_the_command_is_recorded_with_the_home_folder_hidden(
    bench: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(bench.results.parent))
    _, document = bench.run(capsys)
    command = read_run(Path(document["run"])).command
    assert "--results" in command and "~/results" in command
    assert str(bench.results.parent) not in " ".join(command)


def test_pages_are_made_again_from_the_command_line(
    bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "draw_plot", draw_plot)
    _, document = bench.run(capsys)
    again = tmp_path / "again"
    assert run_program(main, ["report", document["run"], "--out", str(again)]) == 0
    for name in ("report.md", "plot.png"):
        assert (again / name).read_bytes() == (Path(document["run"]) / name).read_bytes()
    with pytest.raises(UsageError, match="never rewritten"):
        main(["report", document["run"], "--out", document["run"]])


# --- the label, computed from what happened

OFFICIAL = dataclasses.replace(load_contract("tiny-cpu"), official=True)
GOOD = PackFacts(
    lock="ab" * 32,
    lock_verified=True,
    contract_sha256=contract_sha256(OFFICIAL),
    weights="checkpoint",
    source_id="x",
    source_revision="y",
    source_matches=True,
)


@pytest.fixture
def labelled(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, tuple[str, ...]]]:
    """Label and reasons of a run with these facts about its pack and plan."""

    def run(pack: PackFacts = GOOD, **changes: Any) -> tuple[str, tuple[str, ...]]:
        monkeypatch.setattr(measure, "pack_facts", lambda _: pack)
        bench.ready.write_text(json.dumps(json.loads(bench.ready.read_text()) | {"lock": pack.lock}))
        plan = BenchPlan(
            url=bench.arguments["url"],
            token_file=Path(bench.arguments["token_file"]),
            contract=OFFICIAL,
            profile=load_profile("prefill_1024_64"),
            overridden=(),
            pack=Path(bench.arguments["pack"]),
            service_file=bench.ready,
            release=Release(id="r", git_sha=SHA, dirty=False, diff_sha256=None),
            host="loopback",
            host_facts={},
            results=bench.results,
            prompt_form="ids",
            settings=ClientSettings(read=5),
            command=(),
        )
        record = run_bench(dataclasses.replace(plan, **changes)).record
        return record.label, record.label_reasons

    return run


def test_an_official_unchanged_verified_and_fair_run_is_fixed_contract(
    labelled: Callable[..., tuple[str, tuple[str, ...]]],
) -> None:
    assert labelled() == ("fixed-contract", ())


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"weights": "random"}, "pack weights are random"),
        ({"weights": "demo"}, "pack weights are demo"),
        ({"source_matches": False}, "pack sources differ from the pinned revision"),
        ({"lock_verified": False}, "pack LOCK not verified"),
    ],
)
def test_whatever_speaks_against_the_pack_makes_it_exploratory(
    labelled: Callable[..., tuple[str, tuple[str, ...]]], facts: dict[str, Any], reason: str
) -> None:
    assert labelled(dataclasses.replace(GOOD, **facts)) == ("exploratory", (reason,))


def test_a_throttled_run_of_an_official_contract_is_no_claim(
    labelled: Callable[..., tuple[str, tuple[str, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "throttle_reasons", lambda *_: ("throttled: hot",))
    assert labelled() == ("exploratory", ("the run is invalid",))


def fill(disk: Path) -> None:
    """Leave no byte free there."""
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.fault("disk full (before it starts)", "bench")
def test_a_disk_without_room_for_the_record_is_refused_in_bytes_before_anything_is_measured(
    bench: Any,
    service: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    mount_small_disk: Any,
) -> None:
    results = mount_small_disk(tmp_path / "small", 1024)
    code, document = bench.run(capsys, results=str(results))
    needed = record_bytes(load_profile("prefill_1024_64"))
    assert code == 4 and f"the run's record needs {needed} bytes" in document["error"]["message"]
    assert "has 1048576 free; make room there" in document["error"]["message"]
    assert service.script.bodies == []
    assert not [path for path in results.rglob("*") if path.is_file()]


@pytest.mark.parametrize("asked", ["mkdir", "fallocate"])
def test_a_disk_that_has_not_even_room_for_a_folder_or_promises_too_much_is_refused_in_bytes_too(
    bench: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    asked: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if asked == "fallocate":
        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        monkeypatch.setattr(Path, "mkdir", full)
    code, document = bench.run(capsys, results=str(tmp_path / "results"))
    needed = record_bytes(load_profile("prefill_1024_64"))
    assert code == 4 and f"the run's record needs {needed} bytes: the disk of" in document["error"]["message"]
    assert not [path for path in tmp_path.glob("results/**/*") if path.is_file()]


@pytest.mark.fault("disk full (data)", "bench")
def test_a_disk_that_fills_up_while_it_measures_costs_nothing_of_the_record(
    bench: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    mount_small_disk: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = mount_small_disk(tmp_path / "small", 4096)
    state = measure.read_host_state
    monkeypatch.setattr(measure, "read_host_state", lambda: (fill(results), state())[1])
    code, document = bench.run(capsys, results=str(results))
    assert code == 0, document
    assert len(read_run(Path(document["run"])).samples) == 4
    assert shutil.disk_usage(results).free < record_bytes(load_profile("prefill_1024_64"))
    assert [path.name for path in Path(document["run"]).parent.iterdir()] == [Path(document["run"]).name]


@pytest.mark.fault("disk full (record)", "bench")
def test_a_record_that_cannot_be_written_leaves_every_sample_and_nothing_half(
    bench: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    mount_small_disk: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = mount_small_disk(tmp_path / "small", 4096)
    release = Journal.release
    monkeypatch.setattr(Journal, "release", lambda self: (release(self), fill(results)))
    code, document = bench.run(capsys, results=str(results))
    message = document["error"]["message"]
    assert code == 4 and "No space left on device; free some space; 4 samples are kept in " in message
    (kept,) = results.rglob("*.samples.jsonl")
    assert str(kept) in message
    samples = [from_data(Sample, json.loads(line), "x") for line in kept.read_text().splitlines()]
    assert [sample.phase for sample in samples] == ["warmup"] + ["measured"] * 3
    assert [len(sample.event_ns) for sample in samples] == [64] * 4
    left = [path for path in results.rglob("*") if path.is_file() and path.name != "filler"]
    assert left == [kept]
    assert list_runs(results).rows == () and list_runs(results).broken == ()


def test_a_killed_run_leaves_the_samples_it_had(tmp_path: Path, make_record: Any) -> None:
    journal = Journal(tmp_path / "p", "20261121T005907.001Z-fedcba9", 1 << 16)
    samples = make_record().samples
    for sample in samples:
        journal.add(sample)
    kept = journal.path.read_bytes()  # as a kill leaves it
    lines = kept.rstrip(b"\0").decode().splitlines()
    assert len(kept) == 1 << 16
    assert tuple(from_data(Sample, json.loads(line), "x") for line in lines) == samples
    journal.remove()
    assert list((tmp_path / "p").iterdir()) == []


def test_what_a_record_is_said_to_take_is_enough_for_every_kept_run() -> None:
    runs = sorted(ROOT.glob("results/v1/*/*/*/run.json"))
    assert runs
    for file in runs:
        took = sum(path.stat().st_size for path in file.parent.iterdir())
        assert took + file.with_name("samples.jsonl").stat().st_size <= record_bytes(read_run(file).profile)
