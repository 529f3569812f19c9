"""The embedded server's process (`serve`, started by `control`), and whether it runs (`status`)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lean.cli import ProgramParser, run_program
from lean.errors import PreflightError
from lean.jobs.process import ProcessIdentity
from remote.loopback.control import ALIAS, ServerState, replace_file, status


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
        own = ServerState(process=ProcessIdentity.of(os.getpid()), port=port)
        _write_config(directory, port)
        replace_file(directory / "state.json", json.dumps(asdict(own)) + "\n")
        with contextlib.suppress(BrokenPipeError):  # the starter was interrupted; the state says all the same
            answer.write(json.dumps({"port": port}) + "\n")
            answer.close()
        os.close(lock)

    os.chdir(directory / "home")
    asyncio.run(_serve_until_stopped(listener, directory, announce))
    (directory / "state.json").unlink(missing_ok=True)


async def _serve_until_stopped(
    listener: socket.socket, directory: Path, announce: Callable[[], None]
) -> None:
    from remote.loopback import server

    home = directory / "home"
    running = server.Running(home, server.session_environment(os.environ, home))
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    acceptor = await server.start(listener, directory, running)
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
    replace_file(file, f"{listener.getsockname()[1]}\n")
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
    replace_file(directory / "ssh_config", "\n".join(lines) + "\n")


def _program(argv: list[str]) -> dict[str, Any]:
    parser = ProgramParser(prog="python -m remote.loopback", description=__doc__)
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
        return asdict(status(options.directory))
    return asdict(status())


if __name__ == "__main__":
    raise SystemExit(run_program(_program))
