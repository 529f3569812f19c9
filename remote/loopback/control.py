"""The embedded host: starting, finding and stopping the SSH server behind `loopback`.

Everything it owns lies in one directory (0700): keys, known_hosts, ssh_config, its port, its state and its
home. The server is a detached process; a lock file orders every start and stop.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lean.errors import PreflightError
from lean.jobs.process import ProcessIdentity
from remote.paths import LOOPBACK, REPOSITORY

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 8.0
ALIAS = "leanstack-loopback"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What the server writes to `state.json` once it listens."""

    process: ProcessIdentity
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopbackStatus:
    """Whether the server runs, and where. `pid` and `port` are None when it does not."""

    directory: str
    running: bool
    pid: int | None = None
    port: int | None = None


def ensure_up(directory: Path = LOOPBACK) -> LoopbackStatus:
    """Start the embedded server unless it runs. Idempotent, and safe to call from several processes at once.

    Errors: `PreflightError` when its port is taken by someone else, or it does not start.
    """
    now = status(directory)
    if not now.running:
        with _locked(directory) as lock:
            now = status(directory)
            if not now.running:
                _prepare(directory)
                _launch(directory, lock)
                now = status(directory)
    return now


def down(directory: Path = LOOPBACK) -> bool:
    """Stop the server and the commands it runs; detached jobs go on. Returns whether one was running.

    Only the very process that was started is signalled: boot, pid and start time must all match.
    """
    if not directory.is_dir():
        return False
    with _locked(directory):
        state = _state(directory)
        if state is not None:
            _stop(state.process)
        (directory / "state.json").unlink(missing_ok=True)
    return state is not None


def status(directory: Path = LOOPBACK) -> LoopbackStatus:
    """Look, start nothing. The state left by a server that died counts as not running."""
    state = _state(directory)
    if state is None:
        return LoopbackStatus(directory=str(directory), running=False)
    return LoopbackStatus(directory=str(directory), running=True, pid=state.process.pid, port=state.port)


def _state(directory: Path) -> ServerState | None:
    """What a server that is still the same process wrote, else None."""
    try:
        document = json.loads((directory / "state.json").read_text())
        state = ServerState(process=ProcessIdentity(**document["process"]), port=int(document["port"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if state.process.alive() else None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int]:
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _prepare(directory: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        raise PreflightError("no `ssh-keygen` on this machine; install the OpenSSH client")
    for name in ("host_ed25519", "user_ed25519"):
        if not (directory / name).is_file():
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", ALIAS, "-f", str(directory / name)]
            subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    (directory / "home").mkdir(mode=0o700, exist_ok=True)
    kind, blob = (directory / "host_ed25519.pub").read_text().split()[:2]
    replace_file(directory / "known_hosts", f"{ALIAS} {kind} {blob}\n")


def _launch(directory: Path, lock: int) -> None:
    """Start the server, detached, and wait for its word. It holds our lock until it has written its state."""
    log = directory / "server.log"
    ready, theirs = os.pipe()
    argv = [sys.executable, "-m", "remote.loopback", "serve", "--directory", str(directory.resolve())]
    with open(ready, "rb") as answer, open(log, "wb") as words:
        try:
            starter = subprocess.Popen(
                [*argv, "--ready", str(theirs), "--lock", str(lock)],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                pass_fds=(theirs, lock),
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        starter.wait()  # it forks the server and leaves, so that the server is nobody's child
        said = answer.readline() if select.select([answer], [], [], START_TIMEOUT_S)[0] else b""
    document = json.loads(said) if said else {}
    if "error" in document:
        raise PreflightError(document["error"])
    if "port" not in document:
        raise PreflightError(f"the embedded SSH server did not start; its log is {log}")


def _stop(process: ProcessIdentity) -> None:
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, sent)
        until = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < until:
            if not process.alive():
                return
            time.sleep(0.01)
    raise PreflightError(
        f"the embedded SSH server (pid {process.pid}) does not end; it is stuck in the kernel"
    )


def replace_file(path: Path, text: str) -> None:
    """Write a private file so that a reader sees the old one or the new one."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    beside.replace(path)
