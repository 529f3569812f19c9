"""Jobs from the laptop's side, on both servers: the runner is this checkout's, run by this Python."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lean.errors import GateError, Interrupted, LeanError, NotReadyError, PreflightError, UnreachableError
from remote.host.jobs import Detached, HostJobs
from remote.host.python import HostPython
from remote.ssh.connection import HostConnection

REPO = Path(__file__).resolve().parents[2]
GATED = (
    "import os, sys, time\nprint('one', file=sys.stderr, flush=True)\n"
    "while not os.path.exists({go!r}): time.sleep(0.02)\n"
)


@pytest.fixture
def jobs(any_host: Any) -> Iterator[HostJobs]:
    found = HostJobs(any_host.connect(), HostPython(release=str(REPO), python=sys.executable))
    yield found
    again = HostJobs(any_host.connect(), found.python)
    for job in again.list():
        again.stop(job.name, grace_s=0.0)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def gated(go: Path, rest: str = "") -> list[str]:
    """A job that says one line and goes on once the test has made the file."""
    return python(GATED.format(go=str(go)) + rest)


@contextmanager
def dropping(connection: HostConnection) -> Iterator[None]:
    """A link that drops again and again: between looks it is made anew, within one it is lost."""
    over = threading.Event()

    def drop() -> None:
        while not over.wait(0.3):
            session = connection._session
            if session is not None:
                session._stream.close()

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_followed_job_gives_its_lines_and_its_result(jobs: HostJobs) -> None:
    lines: list[str] = []
    code = "import sys\nsys.stderr.write('one\\ntwo €\\nthe end')\nprint('{\"answer\": 42}')"
    status = jobs.start("a", python(code))
    end = jobs.follow("a", lines.append, run=status.run)

    assert lines == ["one", "two €", "the end"]
    assert end.document("host") == {"answer": 42}
    assert (end.status.state, end.status.exit_code, end.status.finished) == ("exited", 0, True)


def test_a_host_program_raises_the_error_it_describes(jobs: HostJobs) -> None:
    with pytest.raises(NotReadyError, match="no job named 'nobody'"):
        jobs.start_program("a", "lean.jobs", "status", "--root", "/nonexistent", "nobody")
        jobs.follow("a", lambda line: None).document("host")


def test_a_job_that_dies_without_a_word_says_how(jobs: HostJobs) -> None:
    jobs.start("a", python("import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(LeanError, match=r"was killed by signal 9; its log is .*/jobs/a/log"):
        jobs.follow("a", lambda line: None).document("host")


def test_an_error_document_decides_even_with_exit_code_zero(jobs: HostJobs) -> None:
    code = 'print(\'{"error": {"kind": "GateError", "message": "no", "exit_code": 5}}\')'
    jobs.start("a", python(code))
    with pytest.raises(GateError, match="no"):
        jobs.follow("a", lambda line: None).document("host")


def test_ctrl_c_detaches_and_the_job_goes_on_to_be_followed_again(jobs: HostJobs, tmp_path: Path) -> None:
    go, lines = tmp_path / "go", []
    jobs.start("a", gated(go, "print('two', file=sys.stderr); print('{}')"))

    def stop_watching(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(
        Detached, match=r"job 'a' goes on.*invoke remote\.jobs --host \S+ --follow a"
    ) as caught:
        jobs.follow("a", stop_watching)
    assert caught.value.exit_code == Interrupted.exit_code == 130
    assert jobs.status("a").state == "running"
    go.touch()
    end = jobs.follow("a", lines.append)

    assert lines == ["one", "two"]
    assert end.result == {}


@pytest.mark.fault("link down while a job runs", "jobs")
def test_a_lost_link_leaves_the_job_running_and_says_how_to_come_back(
    jobs: HostJobs, any_host: Any, tmp_path: Path
) -> None:
    go, lines = tmp_path / "go", []
    jobs.start("a", gated(go, "print('{\"n\": 1}')"))

    with dropping(jobs._connection), pytest.raises(UnreachableError, match="Job 'a' goes on without us"):
        jobs.follow("a", lambda line: None)
        pytest.fail("the link was not cut")
    again = HostJobs(any_host.connect(), jobs.python)
    assert again.status("a").state == "running"
    go.touch()

    assert again.follow("a", lines.append).result == {"n": 1}
    assert lines == ["one"]


def test_a_second_start_names_the_holder(jobs: HostJobs, tmp_path: Path) -> None:
    jobs.start("a", gated(tmp_path / "go"))
    with pytest.raises(PreflightError, match=r"job 'a' is held by pid \d+ since"):
        jobs.start("a", gated(tmp_path / "go"))


def test_stop_ends_a_job_and_clean_removes_it(jobs: HostJobs, tmp_path: Path) -> None:
    jobs.start("a", gated(tmp_path / "go"))
    with pytest.raises(PreflightError, match="still runs"):
        jobs.clean("a")
    stopped = jobs.stop("a")

    assert (stopped.state, stopped.signal) == ("stopped", 15)
    with pytest.raises(Interrupted, match="was stopped"):
        jobs.follow("a", lambda line: None).document("host")
    assert jobs.clean() == ("a",)
    assert jobs.list() == ()


def test_following_a_run_that_was_replaced_says_so(jobs: HostJobs) -> None:
    first = jobs.start("a", python("pass"))
    jobs.follow("a", lambda line: None)
    jobs.clean("a")
    jobs.start("a", python("pass"))
    with pytest.raises(NotReadyError, match="was started anew"):
        jobs.follow("a", lambda line: None, run=first.run)


def test_waiting_for_readiness_ends_when_the_job_does(jobs: HostJobs) -> None:
    jobs.start("a", python("raise SystemExit(3)"))
    with pytest.raises(NotReadyError, match="ended before it was ready: exited with 3"):
        jobs.wait_for("a", lambda status: False, timeout_s=10)


def test_waiting_for_readiness_has_a_limit(jobs: HostJobs, tmp_path: Path) -> None:
    jobs.start("a", gated(tmp_path / "go"))
    with pytest.raises(NotReadyError, match=r"was not ready within 0\.3 s"):
        jobs.wait_for("a", lambda status: False, timeout_s=0.3)


def test_a_jobs_process_keeps_nothing_of_the_ssh_session_open(
    jobs: HostJobs, any_host: Any, tmp_path: Path
) -> None:
    """A start returns at once although the job runs, and closing the connection does not end it."""
    jobs.start("a", gated(tmp_path / "go"))
    jobs._connection.close()

    assert HostJobs(any_host.connect(), jobs.python).status("a").state == "running"
