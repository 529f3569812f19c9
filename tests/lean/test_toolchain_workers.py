"""Workers of the toolchain: what crashes or hangs loses its own job and no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toolchain_fakes as fakes

from lean.toolchain.workers import Lost, run_jobs

ROOT = Path(__file__).resolve().parents[2]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody waited for counts as ended."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_results_come_in_the_order_of_the_jobs_and_are_heard_of_as_they_end() -> None:
    heard: dict[int, object] = {}
    found = run_jobs(
        fakes.double, range(5), workers=2, seconds=60, finished=lambda i, result: heard.update({i: result})
    )
    assert found == [0, 2, 4, 6, 8]
    assert heard == dict(enumerate(found))
    assert run_jobs(fakes.double, [], workers=2, seconds=60) == []


def test_a_crash_a_hang_a_bug_and_an_exit_lose_their_own_jobs_only() -> None:
    jobs = ["one", "crash", "two", "hang", "raise", "exit", "three"]
    one, crash, two, hang, bug, left, three = run_jobs(fakes.behave, jobs, workers=2, seconds=2)
    assert [str(result).split()[0] for result in (one, two, three)] == ["one", "two", "three"]
    for result, reason in (
        (crash, "its process died of signal 11 (SIGSEGV)"),
        (hang, "it did not end within 2 s and was stopped"),
        (bug, "ValueError: a bug"),
        (left, "its process ended with code 3"),
    ):
        assert isinstance(result, Lost) and result.reason == reason


def test_what_a_stopped_worker_had_started_is_stopped_too(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    run_jobs(fakes.behave, [f"hang {file}"], workers=1, seconds=2)
    end = time.monotonic() + 10
    while not gone(int(file.read_text())) and time.monotonic() < end:
        time.sleep(0.05)
    assert gone(int(file.read_text()))


def test_what_a_worker_that_died_had_started_is_stopped_too(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    (found,) = run_jobs(fakes.behave, [f"orphan {file}"], workers=1, seconds=60)
    assert isinstance(found, Lost) and found.reason == "its process died of signal 11 (SIGSEGV)"
    end = time.monotonic() + 10
    while not gone(int(file.read_text())) and time.monotonic() < end:
        time.sleep(0.05)
    assert gone(int(file.read_text()))


def test_a_program_that_is_told_to_end_ends_its_workers_and_what_they_started(tmp_path: Path) -> None:
    file, script = tmp_path / "pid", tmp_path / "program.py"
    script.write_text(
        "import sys, toolchain_fakes as fakes\n"
        "import lean.toolchain.__main__ as program\n"
        "from lean.toolchain.workers import run_jobs\n"
        "if __name__ == '__main__':\n"
        f"    job = 'hang {file}'\n"
        "    program.main = lambda argv: run_jobs(fakes.behave, [job], workers=1, seconds=600)\n"
        "    sys.exit(program.program())\n"
    )
    places = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    child = subprocess.Popen(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": places}, stdout=subprocess.PIPE
    )
    end = time.monotonic() + 60
    while not (file.is_file() and file.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    child.terminate()
    out, _ = child.communicate(timeout=30)
    assert child.returncode == 130 and json.loads(out)["error"]["kind"] == "Interrupted"
    while not gone(int(file.read_text())) and time.monotonic() < end:
        time.sleep(0.05)
    assert gone(int(file.read_text()))


def test_a_worker_serves_job_after_job_until_a_result_spoils_it() -> None:
    jobs = ["a", "b", "spoilt", "c"]
    found = run_jobs(
        fakes.behave, jobs, workers=1, seconds=60, retire=lambda result: result.startswith("spoilt")
    )
    pids = [str(result).split()[1] for result in found]
    assert pids[0] == pids[1] == pids[2] != pids[3]
    assert all(gone(int(pid)) for pid in pids) and str(os.getpid()) not in pids


def test_an_error_in_the_caller_leaves_no_worker_behind() -> None:
    pids: list[int] = []

    def finished(index: int, result: str | Lost) -> None:
        pids.append(int(str(result).split()[1]))
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        run_jobs(fakes.behave, ["a", "b"], workers=2, seconds=60, finished=finished)
    assert gone(pids[0])
