"""The detached job runner: the real program, real processes, this machine."""

from __future__ import annotations

import getpass
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO, until

from lean.errors import NotReadyError, PreflightError, UsageError
from lean.jobs import JobStore, launch, observe, stop
from lean.jobs.process import ProcessIdentity, start_ticks

SLEEPER = "import signal, sys, time; print('up', file=sys.stderr, flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"


class Runner:
    """`python -m lean.jobs` against one root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "lean.jobs", verb, "--root", str(self.root), *arguments]
        return subprocess.run(
            argv,
            cwd="/",
            env=os.environ | {"PYTHONPATH": str(REPO)},
            capture_output=True,
            text=True,
            timeout=30,
        )

    def __call__(self, verb: str, *arguments: str) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.run(verb, *arguments).stdout)
        return result

    def start(self, name: str, code: str, *options: str) -> dict[str, Any]:
        return self("start", "--heartbeat", "0.1", *options, name, "--", sys.executable, "-c", code)

    def store(self, name: str) -> JobStore:
        return JobStore(root=self.root, name=name)

    def ended(self, name: str) -> dict[str, Any]:
        return until(
            lambda: self("status", name), lambda status: status["state"] not in ("starting", "running")
        )


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Runner]:
    runner = Runner(tmp_path / "root")
    yield runner
    for folder in (runner.root / "jobs").glob("*"):
        stop(JobStore(root=runner.root, name=folder.name), grace_s=0.0)


def test_a_job_outlives_its_starter_in_a_session_of_its_own(jobs: Runner) -> None:
    status = jobs.start("a", SLEEPER)

    pid = status["process"]["pid"]
    assert status["state"] == "running"
    assert os.getsid(pid) == pid != os.getsid(0)
    assert os.getsid(status["supervisor"]["pid"]) != os.getsid(0)


def test_the_result_is_kept_apart_from_the_log(jobs: Runner) -> None:
    jobs.start("a", "import sys; print('progress', file=sys.stderr); print('{\"answer\": 42}')")
    jobs.ended("a")

    tail = jobs("tail", "a")

    assert (tail["text"], tail["result"], tail["complete"]) == ("progress\n", {"answer": 42}, True)
    assert (tail["status"]["state"], tail["status"]["exit_code"]) == ("exited", 0)


@pytest.mark.parametrize(
    ("code", "state", "exit_code", "number"),
    [
        ("raise SystemExit(7)", "failed", 7, None),
        ("import os; os.kill(os.getpid(), 9)", "failed", None, 9),
    ],
)
def test_a_failed_job_says_how_it_ended(
    jobs: Runner, code: str, state: str, exit_code: int | None, number: int | None
) -> None:
    jobs.start("a", code)
    status = jobs.ended("a")

    assert (status["state"], status["exit_code"], status["signal"]) == (state, exit_code, number)
    assert status["ended"]


def test_a_program_that_is_not_there_is_a_failed_job_that_names_it(jobs: Runner) -> None:
    status = jobs("start", "a", "--", "/no/such/program")

    assert status["state"] == "failed"
    assert "/no/such/program" in status["reason"]


def test_a_job_gets_its_arguments_as_they_are(jobs: Runner) -> None:
    odd = ["--", "-x", "$(touch canary)", "a b\nc", "'"]
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    jobs("start", "a", "--", sys.executable, "-c", code, *odd)
    jobs.ended("a")

    assert jobs("tail", "a")["result"] == odd
    assert not list(jobs.root.rglob("canary"))


@pytest.mark.fault("two at once", "jobs")
def test_of_two_starts_at_once_one_wins_and_the_other_names_the_holder(jobs: Runner) -> None:
    argv = [sys.executable, "-m", "lean.jobs", "start", "--root", str(jobs.root), "a", "--", "sleep", "60"]
    env = os.environ | {"PYTHONPATH": str(REPO)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    starters = [subprocess.Popen(argv, env=env, **pipes) for _ in range(4)]  # type: ignore[call-overload]
    answers = [json.loads(starter.communicate(timeout=30)[0]) for starter in starters]

    won = [answer for answer in answers if "error" not in answer]
    lost = [answer["error"] for answer in answers if "error" in answer]
    assert (len(won), len(lost)) == (1, 3)
    assert {error["kind"] for error in lost} == {"PreflightError"}
    assert all(str(won[0]["supervisor"]["pid"]) in error["message"] for error in lost)


def test_a_finished_job_can_be_started_again_under_its_name(jobs: Runner) -> None:
    first = jobs.start("a", "print('{\"n\": 1}')")
    jobs.ended("a")
    second = jobs.start("a", "print('{\"n\": 2}')")
    jobs.ended("a")

    assert first["run"] != second["run"]
    assert jobs("tail", "a")["result"] == {"n": 2}


def test_tail_goes_on_from_an_offset_and_never_cuts_a_character(jobs: Runner) -> None:
    go = jobs.root.parent / "go"
    code = (
        "import os, time\nos.write(2, b'one\\n\\xe2\\x82')\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.02)\n"
        "os.write(2, b'\\xac two\\n\\xff\\n')"
    )
    jobs.start("a", code)
    first = until(lambda: jobs("tail", "a"), lambda tail: tail["text"])
    go.touch()
    jobs.ended("a")
    rest = jobs("tail", "--offset", str(first["next_offset"]), "a")

    assert first["text"] + rest["text"] == "one\n€ two\n�\n"
    assert "�" not in first["text"]
    assert rest["next_offset"] == len("one\n€ two\n".encode()) + 2


def test_tail_waits_for_news_and_gives_at_most_the_limit(jobs: Runner) -> None:
    jobs.start("a", "import sys, time; time.sleep(0.5); sys.stderr.write('x' * 100); time.sleep(60)")
    tail = jobs("tail", "--wait", "10", "--limit", "30", "a")

    assert tail["text"] == "x" * 30
    assert not tail["complete"]


def test_stop_ends_the_whole_process_group(jobs: Runner) -> None:
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\n"
        "print(child.pid, file=sys.stderr, flush=True); time.sleep(60)"
    )
    jobs.start("a", code)
    text = until(lambda: jobs("tail", "a")["text"], lambda text: "up" in text)
    grandchild = int(next(line for line in text.split() if line.isdigit()))
    status = jobs("stop", "a")

    assert (status["state"], status["signal"]) == ("stopped", signal.SIGTERM)
    until(lambda: start_ticks(grandchild), lambda ticks: ticks is None)


def test_stop_kills_what_ignores_it_after_the_grace_period(jobs: Runner) -> None:
    jobs.start("a", STUBBORN)
    until(lambda: jobs("tail", "a")["text"], lambda text: "up" in text)
    status = jobs("stop", "--grace", "0.2", "a")

    assert (status["state"], status["signal"]) == ("stopped", signal.SIGKILL)


@pytest.mark.fault("another boot id", "jobs")
def test_a_restarted_machine_makes_a_running_job_lost(jobs: Runner) -> None:
    jobs.start("a", SLEEPER)
    store = jobs.store("a")
    status = store.read()
    freeze_supervisor(status.supervisor)
    elsewhere = replace(status.supervisor, boot_id="00000000-0000-0000-0000-000000000000")
    assert status.process is not None
    store.write(
        replace(status, supervisor=elsewhere, process=replace(status.process, boot_id=elsewhere.boot_id))
    )

    try:
        assert observe(store).state == "lost"
        assert stop(store, grace_s=0.0).state == "lost"
        assert status.process.alive()
    finally:
        status.process.signal_group(signal.SIGKILL)
        os.kill(status.supervisor.pid, signal.SIGCONT)
        until(lambda: status.supervisor.alive(), lambda alive: not alive)


@pytest.mark.fault("pid reused by a stranger", "jobs")
def test_stop_never_signals_a_stranger_with_a_reused_pid(jobs: Runner) -> None:
    jobs.start("a", SLEEPER)
    store = jobs.store("a")
    status = store.read()
    os.kill(status.supervisor.pid, signal.SIGKILL)
    until(lambda: status.supervisor.alive(), lambda alive: not alive)
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert status.process is not None
        reused = replace(status.process, pid=stranger.pid)  # its own start time, another one's number
        store.write(replace(status, process=reused))

        assert observe(store).state == "lost"
        stop(store, grace_s=0.0)

        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        assert status.process is not None
        status.process.signal_group(signal.SIGKILL)


@pytest.mark.fault("kill -9 of the supervisor", "jobs")
def test_a_job_survives_its_supervisor_and_is_still_found_and_stopped(jobs: Runner) -> None:
    status = jobs.start("a", SLEEPER)
    os.kill(status["supervisor"]["pid"], signal.SIGKILL)
    orphan = until(lambda: jobs("status", "a"), lambda status: not status["supervised"])

    assert orphan["state"] == "running"
    assert str(status["process"]["pid"]) in jobs.start("a", SLEEPER)["error"]["message"]
    assert jobs("stop", "a")["state"] == "stopped"
    assert start_ticks(status["process"]["pid"]) is None


@pytest.mark.fault("kill -9 of the supervisor and the job", "jobs")
def test_a_supervisor_and_job_killed_together_are_lost_and_leave_no_lock(jobs: Runner) -> None:
    status = jobs.start("a", SLEEPER)
    os.kill(status["supervisor"]["pid"], signal.SIGKILL)
    os.kill(status["process"]["pid"], signal.SIGKILL)

    assert jobs.ended("a")["state"] == "lost"
    assert jobs.start("a", "pass")["state"] == "running"


def test_clean_removes_finished_jobs_only(jobs: Runner) -> None:
    jobs.start("done", "pass")
    jobs.start("going", SLEEPER)
    jobs.ended("done")

    assert jobs("clean", "going")["error"]["kind"] == "PreflightError"
    assert jobs("clean")["removed"] == ["done"]
    assert [status["name"] for status in jobs("list")["jobs"]] == ["going"]


@pytest.mark.security("files are 0600 and folders 0700")
def test_everything_a_job_leaves_is_private(jobs: Runner) -> None:
    jobs.start("a", "open('made', 'w').close(); print('{}')", "--cwd", str(jobs.root))
    jobs.ended("a")

    for path in [jobs.root, *jobs.root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", ".a", "a b", "a\n", "$(id)", "x" * 81])
def test_a_name_that_could_be_a_path_or_an_option_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="job name"):
        JobStore(root=tmp_path, name=name)


def test_a_job_nobody_started_is_not_there(jobs: Runner) -> None:
    answer = jobs.run("status", "a")

    assert answer.returncode == NotReadyError.exit_code
    assert "no job named 'a'" in json.loads(answer.stdout)["error"]["message"]


def test_a_process_has_another_identity_than_its_successor_with_the_same_number() -> None:
    me = ProcessIdentity.of(os.getpid())

    assert me.alive()
    assert not replace(me, start_ticks=me.start_ticks + 1).alive()
    assert not replace(me, boot_id="another").alive()


@pytest.mark.parametrize(
    ("scope", "session"), [('shift 5; exec "$@"', "systemd-scope"), ("exit 1", "setsid")]
)
def test_a_scope_of_the_users_systemd_is_used_where_it_works_and_only_there(
    jobs: Runner, tmp_path: Path, scope: str, session: str
) -> None:
    """Stand-ins for systemd's two programs: one whose scopes work, one that refuses them after all."""
    tools, linger = tmp_path / "tools", tmp_path / "linger"
    tools.mkdir()
    linger.mkdir()
    (linger / getpass.getuser()).touch()
    for name, text in {"systemctl": "echo running", "systemd-run": scope}.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    code = (
        "import json, pathlib, sys; from lean.jobs import JobRequest, JobStore, launch, start\n"
        f"launch.LINGER = pathlib.Path({str(linger)!r}); root = pathlib.Path({str(jobs.root)!r})\n"
        "request = JobRequest(argv=('sleep', '60'), cwd=root)\n"
        "print(json.dumps(start(JobStore(root=root, name='a'), request).document()))"
    )
    env = os.environ | {"PYTHONPATH": str(REPO), "XDG_RUNTIME_DIR": str(tmp_path)}
    env["PATH"] = f"{tools}:{env['PATH']}"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=30)

    assert json.loads(done.stdout)["session"] == session
    assert jobs("status", "a")["state"] == "running"


def test_without_linger_no_scope_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch, "LINGER", tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    assert not launch.scope_works()


@pytest.fixture
def small_disk(tmp_path: Path, mount_small_disk: Callable[[Path, int], Path]) -> Path:
    return mount_small_disk(tmp_path / "disk", 256)


def fill(place: Path) -> Path:
    filler = place / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return filler


@pytest.mark.fault("disk full (log and status)", "jobs")
def test_a_full_disk_ends_no_job_and_its_end_is_written_once_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    jobs = Runner(small_disk / "root")
    go = tmp_path / "go"
    code = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)"
    status = jobs.start("a", code)
    supervisor = jobs.store("a").read().supervisor
    beat = jobs("status", "a")["heartbeat"]
    filler = fill(small_disk)
    time.sleep(0.3)
    go.touch()
    until(lambda: start_ticks(status["process"]["pid"]), lambda ticks: ticks is None)
    full = jobs.store("a").read()
    alive = supervisor.alive()
    filler.unlink()

    assert alive
    assert full.state == "running"
    ended = jobs.ended("a")
    assert (ended["state"], ended["exit_code"]) == ("exited", 0)
    assert ended["heartbeat"] > beat


@pytest.mark.fault("disk full (log and status)", "jobs")
def test_a_start_on_a_full_disk_says_so_and_starts_nothing(small_disk: Path) -> None:
    fill(small_disk)
    answer = Runner(small_disk / "root").run("start", "a", "--", "sleep", "60")

    assert answer.returncode == PreflightError.exit_code
    assert "No space left" in json.loads(answer.stdout)["error"]["message"]


def freeze_supervisor(supervisor: ProcessIdentity) -> None:
    """So that it does not write over what the test pretends."""
    os.kill(supervisor.pid, signal.SIGSTOP)
    stat_file = Path(f"/proc/{supervisor.pid}/stat")
    until(lambda: stat_file.read_text().rpartition(")")[2].split()[0], lambda state: state == "T")
