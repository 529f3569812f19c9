"""Another system beside ours on the embedded host: real processes, one client, a report to check by hand."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

SSH = shutil.which("ssh")
LLAMA = os.environ.get(
    "LEAN_LLAMA_ENVIRONMENT"
)  # where `remote.baseline-up --system llama.cpp` once built it
pytestmark = [
    pytest.mark.skipif(SSH is None, reason="needs the OpenSSH client"),
]


def test_a_system_that_the_host_cannot_run_leaves_a_record_with_the_reason(checkout, demo) -> None:
    outcome = checkout.invoke("remote.baseline", "--system", "vllm", "--json")
    assert outcome.code == 4 and "vllm needs an NVIDIA GPU" in outcome.stderr
    (file,) = (checkout.path / "results/v1/loopback/baseline").glob("*/baseline.json")
    record = json.loads(file.read_text())
    assert record["state"] == "not measured" and record["runs"] == []
    assert record["error"]["kind"] == "PreflightError" and "GPU" in record["error"]["message"]
    assert checkout.invoke("results.list", "--json").document["broken"] == []


def test_a_baseline_that_is_not_there_and_a_wrong_name_are_told_so(checkout, demo) -> None:
    assert checkout.invoke("remote.baseline", "--system", "tensorrt").code == 1
    assert checkout.invoke("remote.baseline", "--mode", "best", "--runs", "2").code == 1
    down = checkout.invoke("remote.baseline-down")
    assert down.code == 6 and "baseline" in down.stderr


def test_the_protocol_is_printed_in_its_order_by_a_dry_run(checkout) -> None:
    outcome = checkout.invoke("remote.compare", "--system", "llama.cpp", "--runs", "1", "--dry-run", "--json")
    assert outcome.code == 0, outcome.stderr
    steps = "\n".join(outcome.document["would"])
    order = [
        "lean.baseline install",
        "lean.baseline serve",
        "lean.bench run",
        "lean.leanserve serve",
        "versus",
    ]
    places = [steps.index(word) for word in order]
    assert places == sorted(places)


def test_a_dry_run_of_a_baseline_writes_nothing(checkout) -> None:
    before = sorted((checkout.path / "results").rglob("*"))
    outcome = checkout.invoke("remote.baseline", "--system", "llama.cpp", "--dry-run", "--json")
    assert outcome.code == 0 and "lean.bench run" in "\n".join(outcome.document["would"])
    assert sorted((checkout.path / "results").rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "system",
    [
        "transformers",
        pytest.param(
            "llama.cpp",
            marks=pytest.mark.skipif(
                LLAMA is None,
                reason="needs LEAN_LLAMA_ENVIRONMENT, a built venvs/baseline-llama.cpp-<key>: ten minutes",
            ),
        ),
    ],
)
@pytest.mark.timeout(1200)
def test_ours_and_theirs_are_measured_judged_and_reported(checkout, demo, system: str) -> None:
    if system == "llama.cpp":
        venvs = checkout.path / ".lean/loopback/home/lean/venvs"
        (venvs / Path(str(LLAMA)).name).symlink_to(Path(str(LLAMA)))
    words = ("--system", system, "--threads", "1", "--runs", "1", "--json")
    outcome = checkout.invoke("remote.compare", *words, timeout=1100)
    assert outcome.code == 0, outcome.stderr
    found = outcome.document
    assert found["status"] == "ok" and found["label"] == "exploratory"
    assert all(check["passed"] for check in found["checks"])
    rates = [found[side]["runs"][0]["tokens_per_s"] for side in ("ours", "peer")]
    assert found["ratios"]["claim"] == pytest.approx(rates[0] / rates[1])
    steps = [step["what"].split()[0] for step in found["steps"]]
    assert steps == ["status", "baseline", "measured", "baseline", "appliance", "measured", "appliance"]
    assert "its memory came back" in outcome.stderr
    for side in ("ours", "peer"):
        run = found[side]["runs"][0]
        raw = (checkout.path / "results" / run["run"] / "run.json").read_bytes()
        assert hashlib.sha256(raw).hexdigest() == run["sha256"]
        assert run["sha256"] in (checkout.path / found["path"] / "report.md").read_text()
    peer = json.loads(raw_of(checkout, found, "peer"))
    assert peer["pack"] is None and peer["peer"]["system"] == system and peer["fairness"]["fair"]
    texts = {
        side: [s["text_excerpt"] for s in json.loads(raw_of(checkout, found, side))["samples"]]
        for side in ("ours", "peer")
    }
    assert all(texts["ours"]) and all(texts["peer"])
    jobs = checkout.invoke("remote.jobs", "--json").document["jobs"]
    assert all(job["state"] in ("exited", "stopped") for job in jobs)


def raw_of(checkout, found, side: str) -> str:
    return (checkout.path / "results" / found[side]["runs"][0]["run"] / "run.json").read_text()
