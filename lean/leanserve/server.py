"""uvicorn, configured for one loopback service."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from lean.leanserve.protocol import MAX_HEAD_BYTES, Connection

FLUSH_SECONDS = 5  # for clients to take the end of their answers, once every stream has ended


class Server(uvicorn.Server):
    """uvicorn without its signal handling: the process decides what a signal means."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the handlers alone."""
        yield


def server_for(app: ASGIApp) -> Server:
    """A server for `app`, to be run with `serve(sockets=[...])`; HTTP/1.1 only, by h11."""
    return Server(
        uvicorn.Config(
            app,
            http=Connection,
            loop="asyncio",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=FLUSH_SECONDS,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
    )
