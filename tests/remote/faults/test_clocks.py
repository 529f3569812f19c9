"""Clocks that are a day off, in either direction: nothing is decided by them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO

from remote.host.jobs import HostJobs
from remote.host.python import HostPython
from remote.transfer.copy import push

DAY_S = 86400

SHIFT = """
import datetime, time
_time = time.time
time.time = lambda: _time() + {shift}
class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds={shift})
datetime.datetime = _Datetime
"""


def shifted(any_host: Any, folder: Path, shift: int) -> HostJobs:
    """The jobs of a host whose Python believes that it is `shift` seconds later."""
    folder.mkdir()
    (folder / "lean").symlink_to(REPO / "lean")
    (folder / "sitecustomize.py").write_text(SHIFT.format(shift=shift))
    return HostJobs(any_host.connect(), HostPython(release=str(folder), python=sys.executable))


@pytest.mark.fault("clock a day ahead or behind", "jobs")
@pytest.mark.parametrize("shift", [DAY_S, -DAY_S])
def test_a_job_lives_through_a_clock_that_jumps(any_host: Any, tmp_path: Path, shift: int) -> None:
    before, after = shifted(any_host, tmp_path / "a", 0), shifted(any_host, tmp_path / "b", shift)
    started = before.start("long", ["sleep", "60"])
    seen = after.status("long")
    assert (seen.state, seen.run, seen.supervised) == ("running", started.run, True)
    stopped = after.stop("long", grace_s=5.0)
    assert stopped.state == "stopped"
    again = after.start("long", ["true"])
    end = before.follow("long", lambda line: None, run=again.run)
    assert end.status.finished
    told = abs((_seconds(again.started) - time.time()) - shift)
    assert told < 60, "the fault did not fire"


def _seconds(iso: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(iso).timestamp()


@pytest.mark.fault("clock a day ahead or behind", "push")
@pytest.mark.parametrize("method", ["auto", "chunks"])
@pytest.mark.parametrize("shift", [DAY_S, -DAY_S])
def test_a_host_of_another_day_gets_a_file_by_its_bytes_and_keeps_its_time(
    any_host: Any, tmp_path: Path, shift: int, method: Any, carried_behind: Callable[[str], None]
) -> None:
    """The size is equal, and the time is that of here, or what the host takes for now."""
    seen = tmp_path / "clock"
    carried_behind(SHIFT.format(shift=shift) + f"open({str(seen)!r}, 'w').write(str(time.time()))")
    connection, there = any_host.connect(), Path(any_host.host.root) / "f"
    there.parent.mkdir(parents=True, exist_ok=True)
    here = tmp_path / "f"
    for at in (0, shift):
        there.write_bytes(b"a" * 5000)
        here.write_bytes(b"b" * 5000)
        stamp = time.time_ns() + at * 10**9
        os.utime(here, ns=(stamp, stamp))
        push(connection, here, str(there), method=method)
        assert there.read_bytes() == here.read_bytes() and there.stat().st_mtime_ns == stamp
    assert abs(float(seen.read_text()) - time.time() - shift) < 60, "the fault did not fire"
