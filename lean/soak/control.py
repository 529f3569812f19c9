"""`python -m lean.soak.control`: an arm that is damaged on purpose, as a proxy before a sound engine.

It is a process of its own, so that its work does not share an interpreter with the client that measures.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn

from lean.cli import ProgramParser, run_program
from lean.errors import Interrupted, PreflightError, UsageError
from lean.files.staging import replace_file
from lean.http_server import Server
from lean.soak.proxy import Damage, Proxy

SCHEMA = "soak-control/v1"
DRAIN_S = 5  # for running answers after the first signal
_LAST_WORDS_S = 2.0  # for those that are broken off
_UPSTREAM = re.compile(r"http://(?:127\.0\.0\.1|localhost):[0-9]{1,5}/?")


def main(argv: list[str]) -> dict[str, Any]:
    """Run the command line."""
    usual = Damage(kind="slower")
    parser = ProgramParser(prog="python -m lean.soak.control", description="Damage an engine's answers.")
    parser.add_argument("--upstream", required=True, help="the engine, http://127.0.0.1:PORT")
    parser.add_argument("--kind", choices=("slower", "cut"), required=True)
    parser.add_argument("--share", type=float, default=usual.share, help="slower: of the time; default: 0.06")
    parser.add_argument("--every", type=int, default=usual.every, help="cut: which completion; default: 10")
    parser.add_argument("--ready-file", type=Path, required=True, help="written once it listens")
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    arguments = parser.parse_args(argv)
    if not _UPSTREAM.fullmatch(arguments.upstream):
        raise UsageError(f"--upstream: expected http://127.0.0.1:PORT, got {arguments.upstream!r}")
    if not 0 < arguments.share <= 10:  # nor is NaN
        raise UsageError(f"--share: expected more than 0 and at most 10, got {arguments.share:g}")
    if arguments.every < 1:
        raise UsageError(f"--every: expected 1 or more, got {arguments.every}")
    damage = Damage(kind=arguments.kind, share=arguments.share, every=arguments.every)
    # select() waits in microseconds, where epoll rounds up to the next millisecond, which is a token's time.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(serve(arguments.upstream, damage, arguments.ready_file, arguments.port))


async def serve(upstream: str, damage: Damage, ready_file: Path, port: int) -> dict[str, Any]:
    """Proxy until SIGTERM or SIGINT; a second one ends what still runs. Returns what was served.

    Errors: `PreflightError` when the port is taken or the ready file cannot be written, `Interrupted` when
    answers were broken off at the end.
    """
    signals: asyncio.Queue[str] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number.name)
    proxy, listener = Proxy(upstream, damage), _listener(port)
    document = _document(upstream, damage, int(listener.getsockname()[1]))
    try:
        replace_file(ready_file, json.dumps(document, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        listener.close()
        raise PreflightError(f"ready file {ready_file}: {error.strerror}") from None
    server = _server(proxy)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    told = asyncio.create_task(signals.get())
    try:
        await asyncio.wait((serving, told), return_when=asyncio.FIRST_COMPLETED)
    finally:
        ready_file.unlink(missing_ok=True)
    server.should_exit = True
    hurry = asyncio.create_task(signals.get())
    await asyncio.wait((serving, hurry), return_when=asyncio.FIRST_COMPLETED)
    server.force_exit = True
    await serving
    await _end_others()
    await proxy.close()
    if proxy.broken_off:
        raise Interrupted(f"{proxy.broken_off} answer(s) were broken off before their end")
    return {"stopped_by": told.result(), **document}


def _document(upstream: str, damage: Damage, port: int) -> dict[str, Any]:
    """What the ready file says."""
    settings = {"share": damage.share} if damage.kind == "slower" else {"every": damage.every}
    return {
        "schema": SCHEMA,
        "pid": os.getpid(),
        "url": f"http://127.0.0.1:{port}",
        "port": port,
        "upstream": upstream,
        "kind": damage.kind,
        **settings,
    }


async def _end_others() -> None:
    """Cancel what still runs, unless it is at its end already, and wait for its last words."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        if not task.cancelling():
            task.cancel()
    if others:
        await asyncio.wait(others, timeout=_LAST_WORDS_S)


def _listener(port: int) -> socket.socket:
    # With the protocol named, asyncio sees TCP and sets TCP_NODELAY on what it accepts.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        why = error.strerror if isinstance(error, OSError) else error
        raise PreflightError(f"port {port}: {why}; use --port 0 for a free one") from None
    return listener


def _server(proxy: Proxy) -> Server:
    return Server(
        uvicorn.Config(
            proxy,
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,  # the engine's own headers pass through
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=DRAIN_S,
        )
    )


if __name__ == "__main__":
    sys.exit(run_program(main))
