"""A job's files: `<root>/jobs/<name>/{lock,status.json,log,result.json,stop.<run>}`; folders 0700, files
0600.

`status.json` is only ever replaced whole (written beside, fsync, rename): readers see the old or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lean.errors import NotReadyError, PreflightError, UsageError
from lean.jobs.process import ProcessIdentity

State = Literal["starting", "running", "exited", "failed", "stopped", "lost"]
FINISHED: tuple[State, ...] = ("exited", "failed", "stopped", "lost")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def now() -> str:
    """Wall time in UTC, to the second. For people only; nothing is decided by it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """What is known of one job.

    `run` is new at every start; times are UTC; `heartbeat` is the monotonic clock in seconds.
    `exited` means exit code 0; `failed` any other end that nobody asked for; `lost` that the machine or the
    supervisor went away and nobody saw the end; `reason` says so in words. `supervised: false`
    on a running job: its supervisor died and it did not.
    """

    name: str
    run: str
    state: State
    argv: tuple[str, ...]
    cwd: str
    session: str
    supervisor: ProcessIdentity
    process: ProcessIdentity | None = None
    supervised: bool = True
    heartbeat: float = 0.0
    started: str = ""
    ended: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    log: str = ""
    log_offset: int = 0
    result: str = ""

    @property
    def finished(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in FINISHED

    @property
    def pid(self) -> int | None:
        """The job's process, None before it started."""
        return self.process.pid if self.process else None

    def document(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_document(cls, data: dict[str, Any]) -> JobStatus:
        """The inverse of `document`. Unknown keys of a newer runner are passed over."""
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        for name in ("supervisor", "process"):
            if known.get(name) is not None:
                known[name] = ProcessIdentity(**known[name])
        return cls(**(known | {"argv": tuple(known["argv"])}))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStore:
    """The files of one job. Makes nothing until asked."""

    root: Path
    name: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"job name {self.name!r}: use letters, digits, '.', '_' and '-', at most 80, no sign first"
            )

    @property
    def folder(self) -> Path:
        return self.root / "jobs" / self.name

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    def stop_mark(self, run: str) -> Path:
        """Its existence says that somebody asked this run to stop."""
        return self.folder / f"stop.{run}"

    def make(self) -> None:
        """Create the job's folder, private to its owner. A root that is missing is made too."""
        for folder in (self.root, self.root / "jobs", self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, status: JobStatus) -> None:
        """Replace the status document whole. Errors: `OSError`, and the old document stands."""
        beside = self.folder / "status.json.new"
        with open(beside, "w", encoding="utf-8", opener=private) as file:
            json.dump(status.document(), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.folder / "status.json")

    def read(self) -> JobStatus:
        """The document as it stands; `control.observe` adds what it cannot know. Errors: `NotReadyError`."""
        try:
            text = (self.folder / "status.json").read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise NotReadyError(f"no job named {self.name!r} under {self.root / 'jobs'}") from None
        return JobStatus.from_document(json.loads(text))

    @contextlib.contextmanager
    def locked(self, *, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the job's lock, which dies with its holder. Errors: `PreflightError` naming the holder."""
        descriptor = self._lock(time.monotonic() + wait_s)
        try:
            os.ftruncate(descriptor, 0)
            with contextlib.suppress(OSError):  # a full disk costs the holder's name, not the lock
                holder = {"since": now(), "process": asdict(ProcessIdentity.of(os.getpid()))}
                os.pwrite(descriptor, json.dumps(holder).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, deadline: float) -> int:
        path = self.folder / "lock"
        while True:
            self.make()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same_file(descriptor, path):
                    return descriptor
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = _holder(descriptor)
                    os.close(descriptor)
                    raise PreflightError(f"job {self.name!r} is held by {holder}; stop it first") from None
                time.sleep(0.05)
            os.close(descriptor)  # still held, or cleaned away between open and lock


def _holder(descriptor: int, patience_s: float = 1.0) -> str:
    """Who holds the lock, in words. A new holder needs a moment to write over what a dead one left."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found = json.loads(os.pread(descriptor, 400, 0))
            if ProcessIdentity(**found["process"]).alive():
                return f"pid {found['process']['pid']} since {found['since']}"
        time.sleep(0.02)
    return "a start in progress"


def private(path: str, flags: int) -> int:
    """An `open` opener for files only their owner may read."""
    return os.open(path, flags, 0o600)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
