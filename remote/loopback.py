"""The embedded host: starting, finding and stopping the SSH server behind `loopback`.

Everything it owns lies in one directory (0700): keys, known_hosts, ssh_config, its port, its state and its
home. The server is a detached process; a lock file orders every start and stop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lean.cli import run_program
from lean.contracts import Host
from lean.errors import PreflightError
from remote.process import process_identity
from remote.resolve import ResolvedHost, resolve
from remote.settings import REPOSITORY, SshSettings

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 8.0
ALIAS = "leanstack-loopback"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopbackStatus:
    """Whether the server runs, and where. `pid` and `port` are None when it does not."""

    directory: str
    running: bool
    pid: int | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Loopback:
    """A running embedded server."""

    status: LoopbackStatus
    settings: SshSettings

    def resolve(self, name: str, host: Host) -> ResolvedHost:
        """Where it is, through its own ssh_config: the user's configuration has no say."""
        plain = replace(
            host, hostname=ALIAS, user=None, port=None, identity_file=None, proxy_jump=None, fallback=None
        )
        own = replace(self.settings, ssh_config=self.settings.loopback / "ssh_config")
        return resolve(name, plain, own)


def ensure_up(settings: SshSettings | None = None) -> Loopback:
    """Start the embedded server unless it runs. Idempotent, and safe to call from several processes at once.

    Errors: `PreflightError` when its port is taken by someone else, or it does not start.
    """
    settings = settings or SshSettings()
    now = status(settings)
    if not now.running:
        with _locked(settings.loopback) as lock:
            now = status(settings)
            if not now.running:
                _prepare(settings.loopback)
                _launch(settings.loopback, lock)
                now = status(settings)
    return Loopback(now, settings)


def down(settings: SshSettings | None = None) -> bool:
    """Stop the server and the commands it runs; detached jobs go on. Returns whether one was running.

    Only the very process that was started is signalled: its pid and its start time must both match.
    """
    settings = settings or SshSettings()
    if not settings.loopback.is_dir():
        return False
    with _locked(settings.loopback):
        state = _state(settings.loopback)
        was_running = state is not None
        if state is not None:
            _stop(int(state["pid"]), str(state["identity"]))
        (settings.loopback / "state.json").unlink(missing_ok=True)
    return was_running


def status(settings: SshSettings | None = None) -> LoopbackStatus:
    """Look, start nothing. The state left by a server that died counts as not running."""
    directory = (settings or SshSettings()).loopback
    state = _state(directory)
    if state is None:
        return LoopbackStatus(directory=str(directory), running=False)
    pid, port = int(state["pid"]), int(state["port"])
    return LoopbackStatus(directory=str(directory), running=True, pid=pid, port=port)


def _state(directory: Path) -> dict[str, Any] | None:
    """The state document of a server that is still the same process, else None."""
    try:
        state = json.loads((directory / "state.json").read_text())
        same = process_identity(int(state["pid"])) == state["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if same else None


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
    _replace(directory / "known_hosts", f"{ALIAS} {kind} {blob}\n")


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


def _stop(pid: int, identity: str) -> None:
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sent)
        until = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < until:
            if process_identity(pid) != identity:
                return
            time.sleep(0.01)
    raise PreflightError(f"the embedded SSH server (pid {pid}) does not end; it is stuck in the kernel")


def _serve(directory: Path, ready: int, lock: int) -> None:
    """The server process: bind, write the state, say so, serve until SIGTERM."""
    answer = open(ready, "w")  # noqa: SIM115  closed below, long before this function returns
    try:
        listener = _bind(directory)
    except PreflightError as error:
        answer.write(json.dumps({"error": str(error)}) + "\n")
        answer.close()
        return
    port = listener.getsockname()[1]

    def announce() -> None:
        own = {"pid": os.getpid(), "identity": process_identity(os.getpid()), "port": port}
        _write_config(directory, port)
        _replace(directory / "state.json", json.dumps(own) + "\n")
        with contextlib.suppress(BrokenPipeError):  # the starter was interrupted; the state says all the same
            answer.write(json.dumps({"port": port}) + "\n")
            answer.close()
        os.close(lock)

    os.chdir(directory / "home")
    asyncio.run(_serve_until_stopped(listener, directory, announce))
    (directory / "state.json").unlink(missing_ok=True)


async def _serve_until_stopped(listener: socket.socket, directory: Path, announce: Any) -> None:
    from remote import loopback_server

    home = directory / "home"
    running = loopback_server.Running(home, loopback_server.session_environment(os.environ, home))
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    acceptor = await loopback_server.start(listener, directory, running)
    announce()
    await stopped.wait()
    acceptor.close()
    await running.stop()


def _bind(directory: Path) -> socket.socket:
    """Bind the port of last time, or any free one the first time, on 127.0.0.1 and nowhere else."""
    file = directory / "port"
    kept = file.read_text().strip() if file.is_file() else ""
    wanted = int(kept) if kept.isdigit() else 0
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", wanted))
    except OSError as error:
        listener.close()
        busy = error.errno == errno.EADDRINUSE
        why = "is taken by another program" if busy else f"cannot be used ({error.strerror})"
        raise PreflightError(
            f"loopback: port {wanted} of the embedded SSH server {why}; stop that program, or delete {file} "
            "to choose a new port"
        ) from None
    _replace(file, f"{listener.getsockname()[1]}\n")
    return listener


def _write_config(directory: Path, port: int) -> None:
    own = {
        "HostName": "127.0.0.1",
        "Port": str(port),
        "User": "lean",
        "HostKeyAlias": ALIAS,
        "IdentityFile": f'"{directory / "user_ed25519"}"',
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": f'"{directory / "known_hosts"}"',
        "GlobalKnownHostsFile": "/dev/null",
    }
    lines = [f"Host {ALIAS}", *(f"  {name} {value}" for name, value in own.items())]
    _replace(directory / "ssh_config", "\n".join(lines) + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a private file so that a reader sees the old one or the new one."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    beside.replace(path)


def _program(argv: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m remote.loopback", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    serve = verbs.add_parser("serve", help="internal: the server process")
    serve.add_argument("--directory", type=Path, required=True)
    serve.add_argument("--ready", type=int, required=True)
    serve.add_argument("--lock", type=int, required=True)
    verbs.add_parser("status", help="whether it runs, and where")
    options = parser.parse_args(argv)
    if options.verb == "serve":
        if os.fork():
            os._exit(0)
        _serve(options.directory, options.ready, options.lock)
        return asdict(status(SshSettings(loopback=options.directory)))
    return asdict(status())


if __name__ == "__main__":
    raise SystemExit(run_program(_program))
