"""A baseline on a host that was never there, and ours beside it: the order of steps, and what goes wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lean.contracts import Host
from lean.errors import (
    Interrupted,
    InvalidRunError,
    LeanError,
    LinkLost,
    NotReadyError,
    PackError,
    PreflightError,
    UsageError,
    error_document,
)
from remote.appliance.alone import BENCH_JOB
from remote.appliance.baseline import BaselineRequest, forwarded, own_baseline, up
from remote.appliance.baseline_runs import count_of, keep_baseline, run_baseline
from remote.appliance.compare import CompareRequest, ProtocolResult, compare
from remote.appliance.service import ServeRequest, own_service
from remote.console import Console
from remote.host.dry_run import DrySite

REQUEST = BaselineRequest(system="llama.cpp", profile="decode_64_256", model="/models/m")
READY = {
    **{"system": "llama.cpp", "version": "0.3.36", "url": "http://127.0.0.1:1", "port": 1},
    **{"model": "baseline", "model_directory": "/models/m", "dialect": "llama.cpp"},
    **{"first_token_seconds": 1.5, "command": ["llama-server"], "packages": ["gguf 0.19.0"], "memory": {}},
}
ENDED = {"memory_returned": True, "verdict": "its memory came back (its processes are gone)"}


class Far(DrySite):
    """Answers as a host would. `faults`: by the number of the measurement, from 1, what happens instead."""

    def __init__(self, faults: dict[int, BaseException] | None = None, running: tuple[str, ...] = ()) -> None:
        super().__init__(Console(), "far", Host(hostname="203.0.113.9", contract="tiny-cpu"))
        self.faults, self.running = faults or {}, running
        self.measured = 0
        self.rates: dict[int, float | None] = {}
        self.ended: dict[str, Any] | LeanError = ENDED
        self.no_service: LeanError | None = None
        self.impatient = False
        self.unfair: LeanError | None = None

    @property
    def done(self) -> list[str]:
        """The steps behind those that make a host ready: a program and its verb, or the first words."""
        found = []
        for step in self.steps[2:]:
            program = re.search(r"-m (\S+ \w+)", step)
            found.append(program[1] if program else re.match(r"stop job \w+|\w+", step)[0])  # type: ignore[index]
        return found

    def ready(self, name: str, ready_file: str) -> dict[str, Any] | None:
        return READY if name in self.running else None

    def runs(self, name: str) -> bool:
        return name in self.running

    def call(self, module: str, *arguments: str) -> dict[str, Any]:
        super().call(module, *arguments)
        if arguments[0] == "ended" and isinstance(self.ended, LeanError):
            raise self.ended
        return self.ended if isinstance(self.ended, dict) else {}

    def service(
        self, name: str, module: str, *arguments: str, ready_file: str, timeout_s: float
    ) -> dict[str, Any]:
        self.job(name, module, *arguments)
        if self.no_service is not None:
            raise self.no_service
        return READY if name == "baseline" else {"url": "http://127.0.0.1:2", "lock": "0123abcd" * 8}

    def stop(self, name: str, *, grace_s: float = 10.0) -> dict[str, Any]:
        if self.impatient:
            raise KeyboardInterrupt
        return super().stop(name, grace_s=grace_s)

    def outcome(self, name: str, module: str, *arguments: str) -> dict[str, Any]:
        self.job(name, module, *arguments)
        return self._judged() if arguments[0] == "versus" else self._run()

    def _judged(self) -> dict[str, Any]:
        judged = {"headline": "**2.00 times** llama.cpp", "status": "ok"}
        return judged if self.unfair is None else judged | error_document(self.unfair)

    def _run(self) -> dict[str, Any]:
        self.measured += 1
        fault = self.faults.get(self.measured)
        if fault is not None and not isinstance(fault, InvalidRunError):
            raise fault
        run = f"20260101T0000{self.measured:02}.000Z-0123456"
        rate = self.rates.get(self.measured, 100.0 * self.measured)
        document: dict[str, Any] = {
            **{"run": f"/results/{run}", "place": f"v1/far/decode_64_256/{run}"},
            "status": "ok" if fault is None else "invalid",
            "metrics": {
                "tokens_per_s": None if rate is None else {"median": rate},
                "ttft_s": {"median": 0.01},
            },
        }
        return document if fault is None else document | error_document(fault)

    def pull(self, source: str, target: Path) -> None:
        super().pull(source, target)
        target.mkdir(parents=True)  # an existing one is an error: nothing is overwritten


def compared(site: Far, results: Path, **changes: Any) -> ProtocolResult:
    words: dict[str, Any] = {"baseline": REQUEST, "runs": 2, "pack": "/packs/p"}
    return compare(site, CompareRequest(**(words | changes)), results=results)


# --- a baseline


def test_a_baseline_is_installed_served_with_the_profile_s_shape_and_stopped() -> None:
    site = Far()
    request = BaselineRequest(system="llama.cpp", profile="decode_64_256_b4", model="/m", threads=3)
    with own_baseline(site, request) as own:
        assert own.ready == READY and own.ended is None
    assert own.ended == ENDED
    assert site.done == [
        *("lean.baseline install", "lean.baseline serve"),
        *("stop job baseline", "lean.baseline ended"),
    ]
    serving = site.steps[3]
    assert "--model /m --contract tiny-cpu --slots 4 " in serving and "--length 320" in serving
    assert serving.endswith("--threads 3")


def test_an_interrupted_baseline_stops_the_measurement_and_the_system(tmp_path: Path) -> None:
    site = Far({1: Interrupted("detached")})
    found = run_baseline(site, REQUEST, mode="plain", runs=1, results=tmp_path)
    assert isinstance(found.error, Interrupted) and found.document["state"] == "interrupted"
    assert "the measurement and llama.cpp were stopped" in str(found.error)
    assert site.done[2:] == ["lean.bench run", "stop job bench", "stop job baseline", "lean.baseline ended"]


def test_a_measurement_that_ended_by_itself_is_no_reason_to_leave_the_baseline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site, stopped = Far(), []

    def stop(name: str, *, grace_s: float = 10.0) -> dict[str, Any]:
        stopped.append(name)
        raise NotReadyError(f"no job {name!r}")

    monkeypatch.setattr(site, "stop", stop)
    with pytest.raises(Interrupted, match="were stopped"), own_baseline(site, REQUEST):
        raise Interrupted("detached")
    assert stopped == ["bench", "baseline"]


def test_a_lost_link_leaves_both_and_says_how_to_end_the_baseline(tmp_path: Path) -> None:
    site = Far({1: LinkLost("the link was lost.")})
    found = run_baseline(site, REQUEST, mode="plain", runs=1, results=tmp_path)
    assert isinstance(found.error, LinkLost) and found.document["state"] == "link lost"
    assert str(found.error) == (
        "the link was lost. On far llama.cpp goes on too; end it with: invoke remote.baseline-down --host far"
    )
    assert site.done[-1] == "lean.bench run" and not any(step.startswith("stop") for step in site.done)


@pytest.mark.parametrize(
    ("begin", "job"),
    [
        (lambda site: own_baseline(site, REQUEST), "baseline"),
        (lambda site: own_service(site, ServeRequest(pack="/packs/p"), job=BENCH_JOB), "serve"),
    ],
    ids=["baseline", "ours"],
)
def test_a_second_ctrl_c_says_what_may_still_run(begin: Callable[[Far], Any], job: str) -> None:
    site = Far()
    with pytest.raises(Interrupted) as caught, begin(site):
        site.impatient = True
        raise Interrupted("detached")
    assert str(caught.value) == (
        f"interrupted again; the jobs 'bench' and '{job}' may still run, see: invoke remote.jobs --host far"
    )


def test_why_a_measurement_failed_is_not_hidden_by_a_baseline_that_is_gone_already() -> None:
    site = Far()
    site.ended = NotReadyError("no baseline has ended here")
    with pytest.raises(PackError, match="no tokenizer"), own_baseline(site, REQUEST):
        raise PackError("no tokenizer")
    assert site.done[-2:] == ["stop job baseline", "lean.baseline ended"]


@pytest.mark.parametrize("job", ["serve", "bench", "tune"])
def test_no_baseline_is_started_beside_other_work(tmp_path: Path, job: str) -> None:
    for begin in (
        lambda site: up(site, REQUEST),
        lambda site: run_baseline(site, REQUEST, mode="plain", runs=1, results=tmp_path),
    ):
        site = Far(running=(job,))
        with pytest.raises(PreflightError, match=f"job '{job}' runs, and nothing is measured beside it"):
            begin(site)
        assert site.done == []


def test_a_baseline_that_does_not_run_there_is_not_forwarded() -> None:
    for site, system in ((Far(), "llama.cpp"), (Far(running=("baseline",)), "vllm")):
        with (
            pytest.raises(NotReadyError, match=f"remote.baseline-up --host far --system {system}"),
            forwarded(site, system, 0),  # type: ignore[arg-type]
        ):
            pass


# --- its record


def test_a_record_has_the_first_run_the_median_and_the_best_worked_out_by_hand(tmp_path: Path) -> None:
    site = Far()
    site.rates = {1: 120.0, 2: 100.0, 3: 130.0}
    found = run_baseline(site, REQUEST, mode="best", runs=3, results=tmp_path)
    assert found.error is None and found.document["state"] == "measured"
    assert [found.document[name] for name in ("plain", "median", "best")] == [120.0, 120.0, 130.0]
    assert found.document["version"] == "0.3.36" and found.document["ended"] == ENDED
    assert len(list((tmp_path / "v1/far/decode_64_256").iterdir())) == 3


def test_a_system_that_does_not_start_is_an_outcome_with_its_reason(tmp_path: Path) -> None:
    site = Far()
    site.no_service = PreflightError("llama.cpp does not fit")
    found = run_baseline(site, REQUEST, mode="plain", runs=1, results=tmp_path)
    assert found.document["state"] == "not measured" and found.document["runs"] == []
    assert found.document["error"]["message"] == "llama.cpp does not fit"
    page = keep_baseline(found, tmp_path) / "report.md"
    assert "llama.cpp does not fit" in page.read_text()


def test_a_run_that_does_not_count_is_named_and_left_out_of_the_figures(tmp_path: Path) -> None:
    site = Far({1: InvalidRunError("throttled")})
    site.rates = {1: 900.0, 2: 110.0, 3: None}
    found = run_baseline(site, REQUEST, mode="best", runs=3, results=tmp_path)
    assert isinstance(found.error, InvalidRunError) and found.document["error"]["message"] == "throttled"
    assert found.document["best"] == found.document["plain"] == 110.0
    assert [run["status"] for run in found.document["runs"]] == ["invalid", "ok", "ok"]


def test_a_record_is_kept_once_with_a_page_for_people(tmp_path: Path) -> None:
    site = Far()
    site.rates = {1: None}
    found = run_baseline(site, REQUEST, mode="plain", runs=1, results=tmp_path)
    folder = keep_baseline(found, tmp_path)
    assert json.loads((folder / "baseline.json").read_text())["runs"][0]["tokens_per_s"] is None
    page = (folder / "report.md").read_text()
    assert page.startswith("# llama.cpp 0.3.36\n")
    assert "| 20260101T000001.000Z-0123456 | ok | - | 10.00 |" in page
    with pytest.raises(UsageError, match="never rewritten"):
        keep_baseline(found, tmp_path)


def test_a_best_is_of_three_runs_or_more() -> None:
    assert (count_of("plain", None), count_of("best", None), count_of("best", 5)) == (1, 3, 5)
    for mode, runs in (("best", 2), ("plain", 0), ("fastest", None)):
        with pytest.raises(UsageError):
            count_of(mode, runs)


# --- the protocol


def test_the_baseline_is_gone_before_ours_starts_and_the_host_judges_both(tmp_path: Path) -> None:
    site = Far()
    found = compared(site, tmp_path)
    assert site.done == [
        *("lean.baseline install", "lean.baseline serve"),
        *("lean.bench run", "pull") * 2,
        *("stop job baseline", "lean.baseline ended"),
        *("lean.leanserve token", "lean.leanserve serve"),
        *("lean.bench run", "pull") * 2,
        "stop job serve",
        *("push", "lean.bench versus", "pull"),
    ]
    runs = [f"/results/20260101T0000{number:02}.000Z-0123456" for number in (1, 2, 3, 4)]
    judged = next(step for step in site.steps if "lean.bench versus" in step)
    assert f"--ours {runs[2]} --ours {runs[3]} --baseline {runs[0]} --baseline {runs[1]}" in judged
    assert found.error is None and found.path.parent == tmp_path / "v1/far/versus" and found.path.is_dir()


def test_both_sides_get_the_same_prompts_as_text_and_nothing_is_measured_in_process(tmp_path: Path) -> None:
    site = Far()
    compared(site, tmp_path, runs=1)
    theirs, ours = (step for step in site.steps if "lean.bench run" in step)
    assert "--tokenizer /models/m" in theirs and "--pack /packs/p" in ours
    assert all("--profile decode_64_256 --contract tiny-cpu" in step for step in (theirs, ours))
    assert all("--prompt text" in step for step in (theirs, ours))
    assert "'--no-in-process=a comparison measures over HTTP alone'" in ours


def test_ours_is_not_measured_beside_memory_that_did_not_come_back(tmp_path: Path) -> None:
    site = Far()
    site.ended = {"memory_returned": False, "verdict": "its memory did NOT come back"}
    with pytest.raises(PreflightError, match="its memory did not come back, and nothing is measured beside"):
        compared(site, tmp_path)
    assert site.done[-1] == "lean.baseline ended" and site.measured == 2


def test_an_unfair_comparison_comes_home_with_its_error(tmp_path: Path) -> None:
    site = Far()
    site.unfair = InvalidRunError("the same prompts, token by token: a, b")
    found = compared(site, tmp_path)
    assert isinstance(found.error, InvalidRunError) and str(found.error) == str(site.unfair)
    assert found.path.is_dir() and found.document["headline"]


@pytest.mark.parametrize(("turn", "stopped"), [(1, "baseline"), (3, "serve")])
def test_ctrl_c_in_the_protocol_stops_the_side_that_is_up_and_judges_nothing(
    tmp_path: Path, turn: int, stopped: str
) -> None:
    site = Far({turn: Interrupted("detached")})
    with pytest.raises(Interrupted, match="were stopped"):
        compared(site, tmp_path)
    last = site.done[site.done.index("stop job bench") :]
    assert last[:2] == ["stop job bench", f"stop job {stopped}"] and "lean.bench versus" not in site.done


def test_no_comparison_begins_beside_other_work_or_without_a_run(tmp_path: Path) -> None:
    site = Far(running=("serve",))
    with pytest.raises(PreflightError, match="job 'serve' runs"):
        compared(site, tmp_path)
    with pytest.raises(UsageError, match="--runs 0: expected 1 or more"):
        compared(Far(), tmp_path, runs=0)
    assert site.done == []
