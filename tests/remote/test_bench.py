"""What is refused before anything is asked of the host, and what is not, through the verb itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO

from lean.contracts import Host
from lean.errors import (
    Interrupted,
    LeanError,
    LinkLost,
    NotReadyError,
    PackError,
    PreflightError,
    UnreachableError,
)
from remote.appliance import bench
from remote.console import Console
from remote.host.dry_run import DrySite


def dry_bench(*words: str) -> tuple[int, dict[str, Any]]:
    argv = [sys.executable, "-m", "invoke", "remote.bench", "--host", "loopback", "--dry-run", "--json"]
    done = subprocess.run([*argv, *words], cwd=REPO, capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--requests", "2"), 2, "profile decode_64_256: requests: expected at least 3, got 2"),
        (("--warmup", "0"), 2, "profile decode_64_256: warmup_requests: expected at least 1, got 0"),
        (("--requests", "many"), 1, "--requests 'many': expected a whole number"),
    ],
)
def test_counts_that_no_profile_may_have_are_refused_before_a_service_starts(
    words: tuple[str, ...], code: int, message: str
) -> None:
    ended, document = dry_bench(*words)
    assert (ended, document["error"]["message"]) == (code, message)


def test_counts_of_ones_own_reach_the_measurement() -> None:
    code, document = dry_bench("--requests", "90", "--warmup", "2")
    assert code == 0
    assert any("lean.bench run" in step and "--requests 90 --warmup 2" in step for step in document["would"])


class Chip(DrySite):
    """A host with a chip that was never there: prints as `DrySite` does, and fails where it is told to."""

    def __init__(self, fault: BaseException | None = None, running: tuple[str, ...] = ()) -> None:
        contract = "qwen3-4b-base-bf16-h100"
        super().__init__(Console(), "far", Host(hostname="203.0.113.9", contract=contract))
        self.serving: dict[str, Any] | None = None
        self.fault, self.running = fault, running

    def ready(self, name: str, ready_file: str) -> dict[str, Any] | None:
        return self.serving

    def runs(self, name: str) -> bool:
        return name in self.running

    def job(self, name: str, module: str, *arguments: str) -> dict[str, Any]:
        done = super().job(name, module, *arguments)
        if name == bench.IN_PROCESS_JOB and self.fault is not None:
            raise self.fault
        return done

    outcome = job

    def measured(self, tmp_path: Path, **choices: Any) -> list[str]:
        """The steps of one profile's measurement, behind those that make a host ready."""
        request = bench.BenchRequest(profile="decode_64_256_b2", pack="/packs/p-0123abcd", **choices)
        bench.bench(self, request, results=tmp_path)
        return self.steps[2:]


def serving(site: DrySite, backend: str = "cuda", **changes: Any) -> dict[str, Any]:
    """What a service of this release says that fits the measurement."""
    ready = {
        "release": Path(site.release).name,
        "contract": "p",
        "lock": "0123abcd" * 8,
        "runner": {"name": backend, "slots": 2},
        "url": "http://127.0.0.1:1",
    }
    return ready | changes


def test_a_chip_is_measured_in_process_before_its_service_takes_the_memory(tmp_path: Path) -> None:
    steps = Chip().measured(tmp_path)
    inside, token, serve, run, stop, pull = steps
    assert inside.startswith("job measure: python -m lean.leanserve measure --pack /packs/p-0123abcd ")
    assert "--profile decode_64_256_b2 --runner cuda --slots 2 --out '~/lean/tmp/in_process.json'" in inside
    assert "lean.leanserve token" in token
    assert serve.startswith("job serve:") and "--runner cuda --slots 2" in serve
    assert run.startswith("job bench:") and run.endswith("--in-process '~/lean/tmp/in_process.json'")
    assert stop == "stop job serve" and pull.startswith("pull ")


def test_a_split_projection_is_measured_as_it_is_served(tmp_path: Path) -> None:
    inside, _, serve, *_ = Chip().measured(tmp_path, split_k=4)
    assert "leanserve measure" in inside and inside.endswith("--split-k 4")
    assert "leanserve serve" in serve and "--split-k 4" in serve


def test_a_service_that_runs_is_measured_over_http_only_and_left_running(tmp_path: Path) -> None:
    site = Chip()
    site.serving = serving(site)
    run, pull = site.measured(tmp_path)
    assert "'--no-in-process=the service was already running and is not ours to stop'" in run
    assert pull.startswith("pull ")


def test_the_torch_runner_is_measured_over_http_only_in_as_many_steps_as_ever(tmp_path: Path) -> None:
    code, document = dry_bench()
    assert code == 0 and not [step for step in document["would"] if "lean.leanserve measure" in step]
    (run,) = [step for step in document["would"] if "lean.bench run" in step]
    assert "'--no-in-process=the torch runner is measured over HTTP only'" in run
    steps = Chip().measured(tmp_path, runner="torch")
    assert "--runner torch" in steps[1] and "the torch runner is measured over HTTP only" in steps[2]
    site = Chip()
    site.serving = serving(site, "torch")
    assert "the torch runner is measured over HTTP only" in site.measured(tmp_path)[0]


def test_a_chip_where_another_measurement_runs_is_not_measured_beside_it(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="job 'measure' already runs"):
        Chip(fault=PreflightError("job 'measure' already runs")).measured(tmp_path)


@pytest.mark.parametrize("runner", ["cuda", "torch"])
@pytest.mark.parametrize(
    ("job", "words"),
    [
        (
            "serve",
            "far: job 'serve' runs and is not ready, it loads or ends, and nothing is measured beside it; "
            "wait, or stop it with: invoke remote.stop --host far",
        ),
        (
            "measure",
            "far: job 'measure' runs, and nothing is measured beside it; wait for its end, or stop "
            "it with: invoke remote.jobs --host far --stop measure",
        ),
    ],
)
def test_nothing_is_measured_beside_a_service_that_still_loads_or_another_measurement(
    tmp_path: Path, job: str, words: str, runner: str
) -> None:
    site = Chip(running=(job,))
    with pytest.raises(PreflightError) as caught:
        site.measured(tmp_path, runner=runner)
    assert str(caught.value) == words and caught.value.exit_code == 4
    assert site.steps[2:] == []


def test_a_service_that_answers_is_not_measured_beside_another_measurement(tmp_path: Path) -> None:
    site = Chip(running=("serve", "measure"))
    site.serving = serving(site)
    with pytest.raises(PreflightError, match="job 'measure' runs, and nothing is measured beside it"):
        site.measured(tmp_path)
    site.running = ("serve",)
    run, _ = site.measured(tmp_path)
    assert run.startswith("job bench:")


def test_why_it_failed_in_process_goes_into_the_record_and_http_is_measured(tmp_path: Path) -> None:
    steps = Chip(fault=PackError("p: no\n kernels")).measured(tmp_path)
    assert "'--no-in-process=it failed: p: no kernels'" in steps[3] and steps[4] == "stop job serve"


def test_a_long_reason_is_cut(tmp_path: Path) -> None:
    steps = Chip(fault=LeanError("x" * 9000)).measured(tmp_path)
    assert f"it failed: {'x' * 300}'" in steps[3]


@pytest.mark.parametrize(
    ("fault", "raised", "steps"),
    [
        (LinkLost("the link was lost"), UnreachableError, 1),
        (Interrupted("detached"), Interrupted, 2),
    ],
)
def test_a_lost_link_or_ctrl_c_is_no_reason_to_go_on(
    tmp_path: Path, fault: LeanError, raised: type[LeanError], steps: int
) -> None:
    site = Chip(fault=fault)
    with pytest.raises(raised):
        site.measured(tmp_path)
    assert len(site.steps[2:]) == steps and site.steps[3:] == ["stop job measure"][: steps - 1]


def test_ctrl_c_after_the_measurement_ended_is_still_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_runs(name: str, *, grace_s: float = 10.0) -> dict[str, Any]:
        raise NotReadyError("no such job")

    site = Chip(fault=Interrupted("detached"))
    monkeypatch.setattr(site, "stop", nothing_runs)
    with pytest.raises(Interrupted, match="the measurement was stopped"):
        site.measured(tmp_path)


def test_a_second_ctrl_c_says_what_may_still_run_and_how_to_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str, *, grace_s: float = 10.0) -> dict[str, Any]:
        raise KeyboardInterrupt

    site = Chip(fault=Interrupted("detached"))
    monkeypatch.setattr(site, "stop", interrupted)
    with pytest.raises(Interrupted) as caught:
        site.measured(tmp_path)
    assert caught.value.exit_code == 130
    assert str(caught.value) == (
        "interrupted again; the job 'measure' may still run, see: invoke remote.jobs --host far, "
        "and stop it with: invoke remote.jobs --host far --stop measure"
    )
    assert len(site.steps[2:]) == 1


@pytest.mark.parametrize(
    ("changes", "choices", "words"),
    [
        ({"release": "old"}, {}, "serves with release old, this checkout is"),
        ({"lock": "f" * 64}, {}, "serves p-ffffffff with 2 slot"),
        ({"runner": {"name": "cuda", "slots": 8}}, {}, "with 8 slot"),
        ({}, {"runner": "torch"}, "serves with cuda, not torch"),
        ({}, {"split_k": 4}, "serves with split-K off, but this needs 4"),
        ({"runner": {"name": "cuda", "slots": 2, "split_k": 8}}, {}, "split-K 8, but this needs off"),
    ],
)
def test_another_service_than_the_one_to_measure_is_refused_before_anything_is_measured(
    tmp_path: Path, changes: dict[str, Any], choices: dict[str, Any], words: str
) -> None:
    site = Chip()
    site.serving = serving(site, **changes)
    with pytest.raises(PreflightError, match=words):
        site.measured(tmp_path, **choices)
    assert site.steps[2:] == []
