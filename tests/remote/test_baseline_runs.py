"""What a measurement of another system leaves when it does not come to its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lean.contracts import Host
from lean.errors import Interrupted, LinkLost, NotReadyError, PreflightError
from remote.appliance.baseline import BaselineRequest
from remote.appliance.baseline_runs import BaselineRun, keep_baseline, run_baseline
from remote.console import Console
from remote.host.dry_run import DrySite

READY = {
    **{"url": "http://127.0.0.1:1", "version": "1.0", "command": ["serve"], "packages": []},
    **{"memory": {}, "model_directory": "/m", "first_token_seconds": 1.0},
}


class Far(DrySite):
    """Answers as a host would. `faults`: what happens at a measurement, by its number, or at its end."""

    def __init__(self, faults: dict[int | str, BaseException]) -> None:
        super().__init__(Console(), "far", Host(contract="tiny-cpu"))
        self.faults, self.measured = faults, 0

    def service(
        self, name: str, module: str, *arguments: str, ready_file: str, timeout_s: float
    ) -> dict[str, Any]:
        if "up" in self.faults:
            raise self.faults["up"]
        return dict(READY)

    def outcome(self, name: str, module: str, *arguments: str) -> dict[str, Any]:
        self.measured += 1
        if self.measured in self.faults:
            raise self.faults[self.measured]
        run = f"20260101T00000{self.measured}.000Z-0123456"
        speed = {"median": 100.0 + self.measured}
        return {
            **{"run": f"~/lean/results/{run}", "place": f"v1/far/decode_64_256/{run}", "status": "ok"},
            "metrics": {"tokens_per_s": speed, "ttft_s": {"median": 0.01}},
        }

    def stop(self, name: str, *, grace_s: float = 10.0) -> dict[str, Any]:
        if "down" in self.faults:
            raise self.faults["down"]
        return super().stop(name, grace_s=grace_s)

    def pull(self, source: str, target: Path) -> None:
        target.mkdir(parents=True)


def measured(faults: dict[int | str, BaseException], results: Path) -> tuple[BaselineRun, dict[str, Any]]:
    """What it came to, and the record that was kept of it."""
    request = BaselineRequest(
        system="transformers", profile="decode_64_256", model="~/lean/models/m/1", bring=None
    )
    found = run_baseline(Far(faults), request, mode="best", runs=3, results=results)
    path = keep_baseline(found, results)
    assert (path / "report.md").read_text().count("| ok |") == len(found.document["runs"])
    return found, json.loads((path / "baseline.json").read_text())


@pytest.mark.fault("Ctrl-C", "baseline")
@pytest.mark.parametrize("fault", [Interrupted("detached"), KeyboardInterrupt()])
def test_an_interrupted_measurement_leaves_a_record_with_the_runs_that_came_home(
    tmp_path: Path, fault: BaseException
) -> None:
    found, record = measured({3: fault}, tmp_path)
    assert found.error is not None and found.error.exit_code == 130
    assert record["state"] == "interrupted" and record["error"]["exit_code"] == 130
    assert [run["tokens_per_s"] for run in record["runs"]] == [101.0, 102.0]
    assert (record["plain"], record["best"]) == (101.0, 102.0)
    assert all((tmp_path / "v1/far/decode_64_256" / run["run"]).is_dir() for run in record["runs"])


@pytest.mark.fault("Ctrl-C twice", "baseline")
def test_a_second_ctrl_c_keeps_the_record_and_says_where_to_look(tmp_path: Path) -> None:
    _, record = measured({2: Interrupted("detached"), "down": KeyboardInterrupt()}, tmp_path)
    assert record["state"] == "interrupted" and len(record["runs"]) == 1
    assert "invoke remote.jobs --host far" in record["error"]["message"]


@pytest.mark.fault("link lost", "baseline")
@pytest.mark.parametrize("when", [2, "down"])
def test_a_lost_link_leaves_a_record_that_says_what_goes_on(tmp_path: Path, when: int | str) -> None:
    found, record = measured({when: LinkLost("far: the link was lost.")}, tmp_path)
    assert found.error is not None and found.error.exit_code == 3
    assert record["state"] == "link lost" and len(record["runs"]) == (1 if when == 2 else 3)
    if when == 2:
        assert "invoke remote.baseline-down --host far" in record["error"]["message"]


def test_one_that_does_not_start_is_not_measured_and_one_that_ends_is(tmp_path: Path) -> None:
    _, record = measured({"up": NotReadyError("no token")}, tmp_path / "a")
    assert (record["state"], record["runs"]) == ("not measured", []) and "plain" not in record
    found, record = measured({}, tmp_path / "b")
    assert found.error is None and record["state"] == "measured" and record["median"] == 102.0


def test_a_busy_host_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Far, "runs", lambda self, name: name == "tune")
    with pytest.raises(PreflightError, match="job 'tune' runs"):
        measured({}, tmp_path)
    assert list(tmp_path.iterdir()) == []
