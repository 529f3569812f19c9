"""Starting a job: a supervisor in a session of its own, outside the login where the system allows it."""

from __future__ import annotations

import getpass
import json
import os
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.errors import NotReadyError, UsageError, from_document
from lean.jobs.store import JobStatus, JobStore

LINGER = Path("/var/lib/systemd/linger")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What to run: `argv` as it is, no shell. `start_s`: how long the supervisor may take to answer."""

    argv: tuple[str, ...]
    cwd: Path
    heartbeat_s: float = 2.0
    final_write_s: float = 3600.0
    start_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.argv or any("\0" in part for part in self.argv):
            raise UsageError("a job needs a command after '--', without NUL characters")
        if self.heartbeat_s <= 0 or self.start_s <= 0 or self.final_write_s < 0:
            raise UsageError("heartbeat, final write and start times must be positive")


def start(store: JobStore, request: JobRequest) -> JobStatus:
    """Start the job and return its first status; it then lives on by itself.

    Errors: `PreflightError` when one of that name runs (names the holder) or the disk is full;
    `NotReadyError` when no supervisor came up.
    """
    command = [
        *(sys.executable, "-m", "lean.jobs", "supervise", store.name),
        *("--root", str(store.root), "--cwd", str(request.cwd)),
        *("--heartbeat", str(request.heartbeat_s), "--final-write", str(request.final_write_s)),
    ]
    answer = None
    if scope_works():
        scope = ["systemd-run", "--user", "--scope", "--quiet", "--collect", "--"]
        answer = _spawn(
            [*scope, *command, "--session", "systemd-scope", "--", *request.argv], request.start_s
        )
    if answer is None:  # a scope that was refused after all ends without a word, and holds no lock
        answer = _spawn([*command, "--session", "setsid", "--", *request.argv], request.start_s)
    if answer is None:
        raise NotReadyError(
            f"job {store.name!r}: its supervisor ended before it answered; see the error above"
        )
    if "error" in answer:
        raise from_document(answer)
    return JobStatus.from_document(answer)


def scope_works() -> bool:
    """Whether a scope of the user's systemd outlives the login: linger is on and the manager answers."""
    if not (LINGER / getpass.getuser()).exists() or "XDG_RUNTIME_DIR" not in os.environ:
        return False
    if not all(shutil.which(tool) for tool in ("systemd-run", "systemctl")):
        return False
    try:
        answer = subprocess.run(
            ["systemctl", "--user", "is-system-running"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError):
        return False
    return answer.stdout.strip() in ("running", "degraded", "starting")


def _spawn(argv: list[str], start_s: float) -> dict[str, Any] | None:
    """The supervisor's first line, or None when it ended or hung without one. It is left running."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    line, deadline = b"", time.monotonic() + start_s
    with process.stdout as pipe:
        while not line.endswith(b"\n"):
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                process.kill()
                process.wait()
                return None
            piece = os.read(pipe.fileno(), 1 << 16)
            if not piece:
                process.wait()
                return None
            line += piece
    document: dict[str, Any] = json.loads(line)
    return document
