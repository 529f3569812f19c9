"""The process that stays with a job: holds its lock, starts it, beats, and writes down how it ended.

The job writes straight into its log and result files, so it outlives a supervisor that is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from lean.errors import LeanError, NotReadyError, PreflightError, error_document
from lean.jobs.control import observe
from lean.jobs.process import ProcessIdentity
from lean.jobs.store import JobStatus, JobStore, now, private


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorSettings:
    """Seconds between heartbeats, and for how long the last status is tried on a full disk."""

    heartbeat_s: float = 2.0
    final_write_s: float = 3600.0


def supervise(
    store: JobStore, argv: tuple[str, ...], cwd: Path, session: str, settings: SupervisorSettings
) -> int:
    """Run the job to its end. The first line on standard output answers the starter; then silence."""
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, lambda *_: None)  # SIG_IGN would be inherited by the job, a handler is not
    try:
        with store.locked(wait_s=_patience(store)):
            _refuse_orphan(store)
            status, child = _begin(store, argv, cwd, session)
            _answer(status.document())
            _release_terminal(store)
            _watch(store, status, child, settings)
    except LeanError as error:
        _answer(error_document(error))
        return error.exit_code
    return 0


def _answer(document: dict[str, object]) -> None:
    print(json.dumps(document), flush=True)


def _patience(store: JobStore) -> float:
    """Seconds to wait for the lock: the supervisor of a job that has ended lets go right after saying so."""
    try:
        return 5.0 if observe(store).finished else 0.0
    except NotReadyError:
        return 0.0


def _refuse_orphan(store: JobStore) -> None:
    """The lock is ours, yet the job of an earlier, killed supervisor may still run."""
    if not (store.folder / "status.json").exists():
        return
    earlier = observe(store)
    if not earlier.finished and earlier.process is not None:
        raise PreflightError(
            f"job {store.name!r} still runs without a supervisor: pid {earlier.process.pid}; stop it first"
        )
    for mark in store.folder.glob("stop.*"):
        mark.unlink(missing_ok=True)


def _begin(
    store: JobStore, argv: tuple[str, ...], cwd: Path, session: str
) -> tuple[JobStatus, subprocess.Popen[bytes] | None]:
    status = JobStatus(
        name=store.name,
        run=secrets.token_hex(8),
        state="starting",
        argv=argv,
        cwd=str(cwd),
        session=session,
        supervisor=ProcessIdentity.of(os.getpid()),
        heartbeat=time.monotonic(),
        started=now(),
        log=str(store.log),
        result=str(store.result),
    )
    try:
        store.write(status)
        log, result = (_fresh(path) for path in (store.log, store.result))
    except OSError as error:
        raise PreflightError(f"cannot write {store.folder}: {error.strerror}; make room there") from error
    try:
        # its own session: a signal to its group reaches the job and its children, never the supervisor
        child = subprocess.Popen(
            argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=result, stderr=log, start_new_session=True
        )
    except OSError as error:
        why = f"cannot start {argv[0]}: {error.strerror} ({error.filename})"
        failed = replace(status, state="failed", ended=now(), reason=why)
        store.write(failed)
        return failed, None
    finally:
        os.close(log)
        os.close(result)
    # not waited for yet, so the number is still the child's even if it has ended already
    ticks = _start_ticks_of_child(child)
    process = replace(status.supervisor, pid=child.pid, start_ticks=ticks)
    running = replace(status, state="running", process=process)
    _try_write(store, running)
    return running, child


def _fresh(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # a follower of an earlier run keeps its own file
    return private(str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _start_ticks_of_child(child: subprocess.Popen[bytes]) -> int:
    text = Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(text.rpartition(")")[2].split()[19])


def _release_terminal(store: JobStore) -> None:
    """Let go of the starter's pipes, or its SSH channel would stay open as long as the job.

    From here on the supervisor's own complaints go to the job's log.
    """
    null = os.open(os.devnull, os.O_RDWR)
    log = private(str(store.log), os.O_WRONLY | os.O_APPEND)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)


def _watch(
    store: JobStore, status: JobStatus, child: subprocess.Popen[bytes] | None, settings: SupervisorSettings
) -> None:
    if child is None or status.process is None:
        return
    process = status.process
    # a polite end of the whole machine: pass it on and keep watching
    signal.signal(signal.SIGTERM, lambda *_: process.signal_group(signal.SIGTERM))
    descriptor = os.pidfd_open(child.pid)
    while not select.select([descriptor], [], [], settings.heartbeat_s)[0]:
        status = replace(status, heartbeat=time.monotonic(), log_offset=_size(store.log))
        _try_write(store, status)
    os.close(descriptor)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # a job ends with its first process; not reaped yet, so the group's number is still its own
        os.killpg(child.pid, signal.SIGKILL)
    code = child.wait()
    _write_until(store, _ended(store, status, code), settings)


def _ended(store: JobStore, status: JobStatus, code: int) -> JobStatus:
    asked = store.stop_mark(status.run).exists()
    return replace(
        status,
        state="stopped" if asked else "exited" if code == 0 else "failed",
        heartbeat=time.monotonic(),
        ended=now(),
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        log_offset=_size(store.log),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _try_write(store: JobStore, status: JobStatus) -> bool:
    """A full disk must not end the job: the old document stands, and the next heartbeat tries again."""
    try:
        store.write(status)
    except OSError as error:
        with contextlib.suppress(OSError):
            print(f"lean.jobs: status not written, will try again: {error.strerror}", file=sys.stderr)
        return False
    return True


def _write_until(store: JobStore, status: JobStatus, settings: SupervisorSettings) -> None:
    deadline = time.monotonic() + settings.final_write_s
    while not _try_write(store, status) and time.monotonic() < deadline:
        time.sleep(settings.heartbeat_s)
