"""The life of the page's process: bind, print the address, serve until Ctrl-C, leave no child."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from lean.errors import PreflightError
from lean.http_server import Server
from remote.paths import REPOSITORY, STATE
from remote.ui.app import Page, build_app
from remote.ui.assets import Assets
from remote.ui.child import Patience
from remote.ui.choices import Commands, read_choices
from remote.ui.desk import Desk
from remote.ui.guard import Keys
from remote.ui.history import History
from remote.ui.hosts import HostStates
from remote.ui.soaks import Soaks
from remote.ui.standing import Standings
from remote.ui.streams import Forwards

FLUSH_S = 3  # for browsers to take the end of their answers


def serve_page(
    on_ready: Callable[[Keys], None],
    *,
    port: int = 0,
    results: Path = REPOSITORY / "results",
    commands: Commands | None = None,
    patience: Patience | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; a second one ends our children the hard way. `port` 0: a free one.

    `commands` and `patience`: how verbs are started and how long they have to end.

    Errors: `PreflightError` when the port is taken, `ContractError` of a bad hosts.yaml.
    """
    read_choices()  # a bad file is told in the terminal, before anything listens
    with contextlib.closing(_listener(port)) as listener:
        asyncio.run(_serve(listener, on_ready, results, commands or Commands(), patience))


def open_browser(keys: Keys) -> bool:
    """Open the page where there is a graphical browser; whether one was asked to.

    The address goes through a private file: a command line can be read by everyone on this machine.
    """
    if sys.platform != "darwin" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    STATE.mkdir(parents=True, exist_ok=True)
    file = STATE / "ui.html"
    file.unlink(missing_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as page:
        page.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={keys.url}">\n')
    return webbrowser.open(file.as_uri())


def _listener(port: int) -> socket.socket:
    # With the protocol named, asyncio sees TCP and sets TCP_NODELAY on what it accepts.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
    except (OSError, OverflowError) as error:
        listener.close()
        why = error.strerror if isinstance(error, OSError) else error
        raise PreflightError(f"port {port} of this machine: {why}; choose another, or 0") from None
    return listener


async def _serve(
    listener: socket.socket,
    on_ready: Callable[[Keys], None],
    results: Path,
    commands: Commands,
    patience: Patience | None,
) -> None:
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    keys = Keys(port=int(listener.getsockname()[1]))
    desk = Desk(commands, patience)
    page = Page(
        choices=read_choices,
        desk=desk,
        hosts=HostStates(commands, desk, patience=patience),
        forwards=Forwards(commands, patience),
        history=History(results),
        soaks=Soaks(results),
        standings=Standings(commands, desk, patience),
        assets=Assets(),
    )
    server = _server(build_app(page, keys))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    on_ready(keys)
    await asyncio.wait({serving, asyncio.create_task(asked.wait())}, return_when=asyncio.FIRST_COMPLETED)
    hurried = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, hurried.set)
    hurry = asyncio.create_task(_hurry(desk, hurried))
    await close(page)
    server.should_exit = True
    await serving
    await close(page)  # what a last request began while we closed
    hurry.cancel()


async def close(page: Page) -> None:
    """End the event streams and stop every child of the page."""
    page.desk.end_watches()
    page.history.close()
    await asyncio.gather(page.desk.close(), page.hosts.close(), page.forwards.drop())


async def _hurry(desk: Desk, hurried: asyncio.Event) -> None:
    await hurried.wait()
    desk.hurry()


def _server(app: ASGIApp) -> Server:
    return Server(
        uvicorn.Config(
            app,
            http="h11",
            loop="asyncio",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=FLUSH_S,
        )
    )
