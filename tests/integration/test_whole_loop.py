"""The verbs as a person types them, on the embedded host of a copied checkout."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from lean.regions.record import read_region_record
from lean.regions.summary import read_regions, summarize

SSH = shutil.which("ssh")
pytestmark = [
    pytest.mark.skipif(SSH is None, reason="needs the OpenSSH client"),
]


def test_the_demo_ends_with_a_complete_run_directory(checkout, demo) -> None:
    run = Path(demo["path"])
    assert run.is_relative_to(checkout.path / "results" / "v1" / "loopback" / "decode_64_256")
    assert {p.name for p in run.iterdir()} == {
        "run.json", "env.json", "samples.jsonl", "report.md", "plot.png", "log.txt", "SHA256SUMS",
    }  # fmt: skip
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "ok" and record["fairness"]["fair"]
    assert record["contract"]["id"] == "tiny-cpu" and record["pack"]["lock_verified"]
    assert record["release"]["dirty"] is False


def test_the_demo_is_labelled_exploratory_with_its_reasons(demo) -> None:
    assert demo["label"] == "exploratory"
    assert "pack weights are demo" in demo["label_reasons"]


def test_a_run_is_listed_and_shown_from_its_record(checkout, demo) -> None:
    listed = checkout.invoke("results.list", "--json").document
    assert [row["profile"] for row in listed["runs"]] == ["decode_64_256"] and listed["broken"] == []
    shown = checkout.invoke("results.show")
    assert shown.code == 0 and "generated tokens/s" in shown.stdout and "exploratory" in shown.stdout


def test_a_sweep_measures_its_cells_on_one_service_and_resumed_has_nothing_left(
    checkout, demo, tmp_path
) -> None:
    words = ("--profile", "prefill_1024_64", "--concurrency", "off,2", "--results", str(tmp_path), "--json")
    swept = checkout.invoke("remote.sweep", "--name", "s", *words)
    assert swept.code == 0, swept.stderr
    assert swept.stderr.count("start the service that the next cells share") == 1
    cells = swept.document["sweep"]["cells"]
    assert [cell["state"] for cell in cells] == ["done", "done"]
    records = [json.loads((tmp_path / cell["place"] / "run.json").read_text()) for cell in cells]
    assert [record["load"] is None for record in records] == [True, False]
    assert records[1]["load"]["answered"] == 6 and records[1]["label"] == "exploratory"
    assert [row[4] for row in swept.document["rows"]] == ["1 of 1"] * 2
    assert (Path(swept.document["folder"]) / "summary.md").is_file()
    again = checkout.invoke("remote.sweep", "--resume", "s", "--results", str(tmp_path), "--json")
    assert again.code == 0 and again.document["sweep"] == swept.document["sweep"]
    assert len(checkout.invoke("results.list", "--results", str(tmp_path), "--json").document["runs"]) == 2


def test_nothing_is_left_running_after_the_demo_but_the_host(checkout, demo) -> None:
    jobs = checkout.invoke("remote.jobs", "--json").document["jobs"]
    assert {job["name"] for job in jobs} >= {"verify", "fetch", "pack", "serve", "bench"}
    assert all(job["state"] in ("exited", "stopped") for job in jobs)


def test_verify_as_typed_brings_every_stage_home(checkout, demo) -> None:
    outcome = checkout.invoke("remote.verify", "--json")
    assert outcome.code == 0, outcome.stderr
    folder = Path(outcome.document["artifacts"])
    for stage in ("01_bytecode", "02_tileir", "03_cubin", "04_sass"):
        names = " ".join(os.listdir(folder / stage))
        assert "sm_121" in names and "sm_90" in names
    assert "FADD" in next(folder.glob("04_sass/*sm_121*")).read_text()


def test_a_gate_of_a_part_leaves_its_stages_but_no_record(checkout, demo) -> None:
    words = ("remote.gate", "--precision", "bf16,nvfp4", "--route", "mma", "--target", "sm_90")
    outcome = checkout.invoke(*words, "--json")
    assert outcome.code == 0, outcome.stderr
    product, refused = outcome.document["cells"]
    assert product["found"] == ["HGMMA.64x32x16.F32.BF16"]
    assert refused["status"] == "blocked" and "float4_e2m1fn" in refused["why"]
    assert outcome.document["record"] is None and not (checkout.path / "results/v1/loopback/gate").exists()
    folder = Path(outcome.document["artifacts"])
    assert "HGMMA.64x32x16.F32.BF16" in (folder / "04_sass" / "bf16.mma.sm_90.sass").read_text()
    shown = checkout.invoke(*words)
    assert "nvfp4 mma" in shown.stdout and "sm_90: start from bf16" in shown.stdout
    assert str(folder.parent) in shown.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--precision", "fp3"), 1, "--precision: fp3; expected some of bf16"),
        (("--route", "magic"), 1, "--route: magic; expected some of elementwise"),
        (("--target", "sm_1"), 1, "--target: tileiras does not know sm_1"),
        (("--kernels", "/nowhere"), 1, "--kernels: /nowhere: no folder of a gate"),
    ],
)
def test_a_gate_asked_for_what_is_not_there_ends_with_its_code_and_one_line(
    checkout, demo, words: tuple[str, ...], code: int, message: str
) -> None:
    outcome = checkout.invoke("remote.gate", *words, "--json")
    assert (outcome.code, outcome.document["error"]["message"].startswith(message)) == (code, True), outcome
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize(
    ("verb", "words"), [("kernels", "no GPU to prove kernels on"), ("tune", "no GPU to tune for")]
)
def test_speed_is_not_asked_of_a_host_without_a_gpu(checkout, demo, verb: str, words: str) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    before = (checkout.path / "kernels/tuning/sm_90.json").read_bytes()
    outcome = checkout.invoke(f"remote.{verb}", "--json")
    assert outcome.code == 4, outcome
    assert outcome.document["error"]["message"].startswith(words) and "Traceback" not in outcome.stderr
    assert (checkout.path / "kernels/tuning/sm_90.json").read_bytes() == before
    assert not (checkout.path / "results/v1/loopback" / verb).exists()
    dry = checkout.invoke(f"remote.{verb}", "--dry-run", "--json")
    assert dry.code == 0 and any(f"lean.toolchain {verb}" in step for step in dry.document["would"])


@pytest.mark.slow
def test_a_whole_gate_is_kept_and_the_next_one_is_compared_with_it(checkout, demo) -> None:
    first = checkout.invoke("remote.gate", "--target", "sm_90", "--json").document
    record = Path(first["record"])
    assert record.is_relative_to(checkout.path / "results" / "v1" / "loopback" / "gate")
    assert (record.parent / "report.md").is_file() and json.loads(record.read_text())["run"] == first["run"]
    changed = json.loads(record.read_text())
    changed["tools"]["cuda-tile"] = "1.6.0"
    record.chmod(0o600)
    record.write_text(json.dumps(changed))
    second = checkout.invoke("remote.gate", "--target", "sm_90", "--route", "mma", "--json").document
    assert second["changes"]["previous"] == first["run"] and second["changes"]["cells"] == []
    assert second["changes"]["tools"] == {"cuda-tile": ["1.6.0", first["tools"]["cuda-tile"]]}


@pytest.mark.slow
def test_a_portability_matrix_as_typed_comes_from_the_cache_the_second_time(checkout) -> None:
    words = ("show.portability", "--sizes", "tiny", "--target", "sm_121")
    first = checkout.invoke(*words, "--json")
    assert first.code == 0, first.stderr
    assert first.document["compiled"] == first.document["distinct"] and first.document["from_cache"] == 0
    assert f"{first.document['distinct']}/{first.document['distinct']} sm_121" in first.stderr
    second = checkout.invoke(*words)
    assert "kernel sources" in second.stdout and "0 kernels compiled" in second.stdout


def test_the_pack_can_be_inspected_and_laid_out(checkout, demo) -> None:
    found = checkout.invoke("pack.inspect", "--json").document
    assert found["manifest"]["contract"]["id"] == "tiny-cpu"
    plan = checkout.invoke("remote.layout", "--slots", "8", "--json").document
    assert plan["slots"] == 8
    assert plan["total_bytes"] == plan["weight_bytes"] + plan["kv_bytes"] + plan["scratch_bytes"]


def test_packing_and_fetching_again_do_nothing(checkout, demo) -> None:
    assert checkout.invoke("remote.fetch", "--json").document["downloaded"] == 0
    assert checkout.invoke("remote.pack", "--json").document["built"] is False


def test_a_region_record_as_typed_holds_every_timed_step(checkout, demo) -> None:
    outcome = checkout.invoke("remote.regions", "--profile", "prefill_1024_64", "--split-k", "2", "--json")
    assert outcome.code == 0, outcome.stderr
    folder = checkout.path / outcome.document["record"]
    assert folder.parent == checkout.path / "results" / "v1" / "loopback" / "regions"
    record, times = read_region_record(folder), read_regions(folder / "steps.jsonl")
    assert record.label == "supplementary" and record.timed.runner["split_k"] == 2
    profile = record.timed.profile
    steps = profile.decode_tokens - 1
    assert record.warm_up_steps == profile.warmup_requests * steps
    assert len(times.steps) == record.warm_up_steps + profile.requests * steps
    assert summarize(times.steps[record.warm_up_steps :]) == record.summary
    assert record.summary.steps.count == profile.requests * steps
    page = (folder / "report.md").read_text()
    assert "output projection in 2 parts a head" in page and "| gate_up |" in page


def test_serve_status_logs_and_stop(checkout, demo) -> None:
    ready = checkout.invoke("remote.serve", "--slots", "2", "--json").document
    try:
        status = checkout.invoke("remote.status", "--json").document
        assert status["ready"] and status["pid"] == ready["pid"] and status["runner"]["slots"] == 2
        assert any("ready" in line for line in checkout.invoke("remote.logs").stdout.splitlines())
        wrong = checkout.invoke("remote.bench")
        assert wrong.code == 4 and "remote.stop" in wrong.stderr
        loop = checkout.invoke("demo")
        assert loop.code == 4 and "remote.stop" in loop.stderr
        again = checkout.invoke("remote.serve")
        assert again.code == 4 and "serve" in again.stderr
    finally:
        stopped = checkout.invoke("remote.stop", "--json").document
    assert stopped["state"] in ("exited", "stopped")
    assert checkout.invoke("remote.status", "--json").document["ready"] is False


def test_a_busy_port_ends_with_4_and_names_it(checkout, demo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        outcome = checkout.invoke("remote.serve", "--port", str(port))
    assert outcome.code == 4 and str(port) in outcome.stderr


def test_an_unknown_runner_is_an_error_and_never_a_fallback(checkout, demo) -> None:
    outcome = checkout.invoke("remote.serve", "--runner", "tensorrt")
    assert outcome.code == 1 and "tensorrt" in outcome.stderr


def test_a_tampered_pack_ends_with_8_before_it_listens(checkout, demo) -> None:
    packs = checkout.path / ".lean" / "loopback" / "home" / "lean" / "packs"
    whole = next(packs.glob("tiny-cpu-*"))
    altered = packs.parent / "tmp" / whole.name
    shutil.copytree(whole, altered)
    weights = altered / "weights" / "layer-000.safetensors"
    os.chmod(weights, 0o600)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    outcome = checkout.invoke("remote.serve", "--pack", str(altered))
    assert outcome.code == 8 and "layer-000.safetensors" in outcome.stderr


def test_a_checkpoint_of_another_geometry_ends_with_2_and_both_values(checkout, demo) -> None:
    models = checkout.path / ".lean" / "loopback" / "home" / "lean" / "models"
    wrong = models.parent / "tmp" / "wrong"
    shutil.copytree(next(models.glob("*/sha256-*")), wrong)
    config = json.loads((wrong / "config.json").read_text())
    os.chmod(wrong / "config.json", 0o600)
    (wrong / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    (wrong / "fetch.json").unlink()
    outcome = checkout.invoke("remote.pack", "--model", str(wrong))
    assert outcome.code == 2 and "contract says 4, checkpoint says 5" in outcome.stderr


def test_push_and_pull_bring_a_folder_there_and_back(checkout, demo, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a file").write_bytes(os.urandom(1 << 16))
    there = checkout.path / ".lean" / "loopback" / "home" / "pushed"
    assert checkout.invoke("remote.push", str(tmp_path / "out"), str(there)).code == 0
    assert checkout.invoke("remote.pull", str(there), str(tmp_path / "back")).code == 0
    assert (tmp_path / "back" / "a file").read_bytes() == (tmp_path / "out" / "a file").read_bytes()


def test_a_sync_that_changes_nothing_sends_nothing(checkout, demo) -> None:
    assert checkout.invoke("remote.sync", "--json").document["sent"] == 0
    (checkout.path / "profiles" / "note.txt").write_text("new")
    changed = checkout.invoke("remote.sync", "--json").document
    assert changed["dirty"] and changed["sent"] > 0
    (checkout.path / "profiles" / "note.txt").unlink()


@pytest.mark.parametrize(
    "words",
    [
        ("remote.bootstrap",),
        ("remote.verify",),
        ("remote.gate", "--precision", "bf16"),
        ("remote.fetch",),
        ("remote.probe",),
        ("remote.pack",),
        ("remote.pack", "--random", "7", "--target", "cpu,sm_90"),
        ("remote.layout",),
        ("remote.serve",),
        ("remote.bench",),
        ("remote.regions", "--split-k", "4"),
        ("remote.stop",),
        ("remote.jobs", "--clean"),
        ("demo", "--host", "far"),
    ],
)
def test_a_dry_run_prints_its_steps_and_opens_no_connection(checkout, demo, words: tuple[str, ...]) -> None:
    with checkout.hosts("default: far\nhosts:\n  far: {hostname: 203.0.113.9, contract: tiny-cpu}\n"):
        outcome = checkout.invoke(*words, "--dry-run", timeout=20)
        document = checkout.invoke(*words, "--dry-run", "--json", timeout=20).document
    assert outcome.code == 0, outcome.stderr
    assert document["host"] == "far" and document["would"][0].startswith("sync ")
    for step in document["would"]:
        assert f"far: {step}" in outcome.stdout


@pytest.mark.parametrize(
    "words", [("remote.sync",), ("remote.push", "README.md", "/x"), ("remote.pull", "/x", "y")]
)
def test_a_dry_copy_says_from_where_to_where_and_how_much(checkout, demo, words: tuple[str, ...]) -> None:
    with checkout.hosts("default: far\nhosts:\n  far: {hostname: 203.0.113.9, contract: tiny-cpu}\n"):
        document = checkout.invoke(*words, "--dry-run", "--json", timeout=20).document
    assert "far:" in document.get("source", document["target"]) and "bytes" in document


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("remote.sync", "--host", "nope"), 2, "no host named 'nope'"),
        (("show.contract", "--contract", "nope"), 2, "no contract named 'nope'"),
        (("remote.bench", "--profile", "nope"), 2, "no bench named 'nope'"),
        (("results.show", "--run", "nope"), 1, "no run is named 'nope'"),
        (("remote.sync", "--speed", "9"), 1, "speed"),
        (("remote.push", "absent", "/x"), 8, "absent"),
        (("show.portability", "--target", "sm_7"), 1, "--target: sm_7; expected some of sm_80"),
        (("show.portability", "--sizes", "9b"), 1, "--sizes: '9b'; expected some of tiny"),
        (("show.portability", "--workers", "many"), 1, "--workers 'many': expected a whole number"),
        (("show.portability", "--target", "sm_90", "--keep"), 1, "leave out --sizes and --target"),
        (("remote.fetch", "--source", "local", "--path", "/x", "--revision", "v1"), 1, "hash of its content"),
    ],
)
def test_a_wrong_command_line_has_its_exit_code_and_one_clear_line(
    checkout, words: tuple[str, ...], code: int, message: str
) -> None:
    outcome = checkout.invoke(*words)
    assert (outcome.code, message in outcome.stderr + outcome.stdout) == (code, True), outcome
    assert "Traceback" not in outcome.stderr


def test_an_unreachable_host_ends_with_3_and_names_the_address(checkout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with checkout.hosts(f"hosts:\n  gone: {{hostname: 127.0.0.1, port: {port}, contract: tiny-cpu}}\n"):
        outcome = checkout.invoke("remote.sync", "--host", "gone", "--json")
    assert outcome.code == 3
    assert f"127.0.0.1:{port}" in outcome.document["error"]["message"]
