"""Observing, following, stopping and cleaning jobs. Everything here may be run by anyone at any time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lean.errors import NotReadyError, PreflightError
from lean.jobs.process import boot_id
from lean.jobs.store import NAME, JobStatus, JobStore

RESULT_LIMIT = 16 << 20


def observe(store: JobStore) -> JobStatus:
    """The status as it is now, not only as last written. Errors: `NotReadyError`: there is no such job."""
    status = store.read()
    if status.finished or status.supervisor.alive():
        return status
    status = store.read()  # its last word may have come between the two looks
    if status.finished:
        return status
    if status.supervisor.boot_id != boot_id():
        return _lost(status, "the machine was restarted while the job ran")
    if status.process is not None and status.process.alive():
        return replace(status, supervised=False)
    if store.stop_mark(status.run).exists():
        return replace(status, state="stopped", supervised=False)
    return _lost(status, "the supervisor was killed; how the job ended is unknown")


def _lost(status: JobStatus, why: str) -> JobStatus:
    return replace(status, state="lost", supervised=False, reason=why)


def list_jobs(root: Path) -> tuple[JobStatus, ...]:
    """Every job under the root, by name."""
    found = []
    for folder in sorted((root / "jobs").glob("*")):
        if NAME.fullmatch(folder.name) and (folder / "status.json").exists():
            found.append(observe(JobStore(root=root, name=folder.name)))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTail:
    """A piece of the log from a byte offset on.

    `complete`: the job ended and its log is read to the end; only then `result` holds its JSON document.
    """

    status: JobStatus
    text: str
    next_offset: int
    complete: bool
    result: Any

    def document(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "status": self.status.document(),
            "text": self.text,
            "next_offset": self.next_offset,
            "complete": self.complete,
            "result": self.result,
        }


def tail(store: JobStore, offset: int, *, wait_s: float = 0.0, limit: int = 256 << 10) -> JobTail:
    """At most `limit` bytes of the log from `offset`; waits up to `wait_s` seconds for something new.

    Bytes that are no UTF-8 become U+FFFD; a character cut by the end of the log so far is left for next time.
    """
    deadline = time.monotonic() + wait_s
    while True:
        status = observe(store)  # before the log is read: a job that has ended writes nothing more
        data = _read(store.log, offset, limit)
        if data or status.finished or time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    if not (status.finished and len(data) < limit):
        data = data[: len(data) - _cut_character(data)]
    complete = status.finished and len(data) < limit
    return JobTail(
        status=status,
        text=data.decode(errors="replace"),
        next_offset=offset + len(data),
        complete=complete,
        result=_result(store) if complete else None,
    )


def stop(store: JobStore, *, grace_s: float) -> JobStatus:
    """SIGTERM to the job's process group, SIGKILL after `grace_s` seconds; returns the last status.

    Nobody is signalled unless boot id, pid and start time all match. A finished job is left as it is.
    Errors: `NotReadyError` when it does not end even then.
    """
    status = observe(store)
    if status.finished:
        return status
    os.close(os.open(store.stop_mark(status.run), os.O_CREAT | os.O_WRONLY, 0o600))
    run, asked, killed = status.run, False, False
    kill_at, give_up = time.monotonic() + grace_s, time.monotonic() + grace_s + 10.0
    while time.monotonic() < give_up:
        status = observe(store)
        if status.finished or status.run != run:
            return status
        if status.process is not None and not asked:
            asked = status.process.signal_group(signal.SIGTERM)
        if status.process is not None and not killed and time.monotonic() >= kill_at:
            killed = status.process.signal_group(signal.SIGKILL)
        time.sleep(0.02)
    pid = status.process.pid if status.process else status.supervisor.pid
    raise NotReadyError(f"job {store.name!r} (pid {pid}) did not end, even after SIGKILL; see it on the host")


def clean(root: Path, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Remove finished jobs with their logs, all or the named ones; returns the names removed.

    Errors: `PreflightError` when a named one still runs; unnamed running ones are passed over.
    """
    removed = []
    for name in names or tuple(status.name for status in list_jobs(root)):
        store = JobStore(root=root, name=name)
        if not observe(store).finished:
            if names:
                raise PreflightError(f"job {name!r} still runs; stop it first")
            continue
        with store.locked(wait_s=5.0):  # its supervisor lets go right after the last status
            if observe(store).finished:
                shutil.rmtree(store.folder)
                removed.append(name)
    return tuple(removed)


def _read(path: Path, offset: int, limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(limit)
    except FileNotFoundError:
        return b""


def _cut_character(data: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character that is not whole yet (0 to 3)."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if length > back else 0
        if byte < 0x80:
            return 0
    return 0


def _result(store: JobStore) -> Any:
    data = _read(store.result, 0, RESULT_LIMIT + 1)
    try:
        return json.loads(data) if len(data) <= RESULT_LIMIT else None
    except ValueError:
        return None
