"""The site that verbs work on: services that come up, and ones that do not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lean.errors import LeanError, NotReadyError
from remote.console import Console
from remote.host.jobs import Detached, HostJobs
from remote.host.python import HostPython
from remote.host.site import LiveSite

REPO = Path(__file__).resolve().parents[2]
SLOW = "import time\ntime.sleep(60)\n"
READY = "import json, os, sys\njson.dump({'pid': os.getpid()}, open(sys.argv[1], 'w'))\n" + SLOW


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """This checkout's `lean` beside two small programs."""
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "lean").symlink_to(REPO / "lean")
    (folder / "slow.py").write_text(SLOW)
    (folder / "ready.py").write_text(READY)
    (folder / "broken.py").write_text("raise SystemExit('no such thing')")
    return folder


@pytest.fixture
def site(any_host: Any, release: Path) -> Any:
    connection = any_host.connect()
    found = LiveSite(
        Console(), connection, HostPython(release=str(release), python=sys.executable), connection.host.root
    )
    yield found
    for job in found.jobs.list():
        found.jobs.stop(job.name, grace_s=0.0)


def service(site: LiveSite, module: str, ready: Path, timeout_s: float = 20.0) -> dict[str, Any]:
    return site.service("serve", module, str(ready), ready_file=str(ready), timeout_s=timeout_s)


def test_a_service_is_ready_when_it_says_so(site: LiveSite, tmp_path: Path) -> None:
    document = service(site, "ready", tmp_path / "ready.json")
    assert document["pid"] == site.jobs.status("serve").pid
    assert site.ready("serve", str(tmp_path / "ready.json")) == document


def test_a_job_runs_from_its_start_to_its_end_ready_or_not(site: LiveSite) -> None:
    assert not site.runs("serve")
    site.jobs.start_program("serve", "slow")
    assert site.runs("serve") and site.ready("serve", "/nowhere/ready.json") is None
    site.jobs.stop("serve", grace_s=5.0)
    assert not site.runs("serve")


def test_what_a_predecessor_left_is_not_believed(site: LiveSite, tmp_path: Path) -> None:
    (tmp_path / "ready.json").write_text('{"pid": 1}')
    with pytest.raises(NotReadyError, match="was not ready within"):
        service(site, "slow", tmp_path / "ready.json", timeout_s=0.5)


def test_a_start_that_takes_too_long_is_stopped(site: LiveSite, tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match=r"was not ready within 0\.5 s"):
        service(site, "slow", tmp_path / "ready.json", timeout_s=0.5)
    assert site.jobs.status("serve").state == "stopped"


def test_a_service_that_dies_says_how(site: LiveSite, tmp_path: Path) -> None:
    with pytest.raises(LeanError, match=r"job 'serve' exited with 1"):
        service(site, "broken", tmp_path / "ready.json")


def test_ctrl_c_leaves_the_start_running_and_says_how_to_come_back(
    site: LiveSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: HostJobs, name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HostJobs, "status", interrupt)
    with pytest.raises(Detached, match=r"job 'serve' goes on\. Re-attach: invoke remote\.jobs"):
        service(site, "slow", tmp_path / "ready.json")
    monkeypatch.undo()
    assert site.jobs.status("serve").state == "running"
