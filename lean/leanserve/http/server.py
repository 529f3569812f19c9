"""uvicorn for one loopback service, and what it leaves open: a deadline for heads, JSON for bad ones."""

from __future__ import annotations

import asyncio
import json

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from lean.http_server import Server
from lean.leanserve.http.errors import ApiError

HEAD_SECONDS = 10.0
MAX_HEAD_BYTES = 16 * 1024
FLUSH_SECONDS = 5  # for clients to take the end of their answers, once every stream has ended


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


class Connection(H11Protocol):
    """One client connection; a peer that does not finish its request's head in `HEAD_SECONDS` is cut."""

    _head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the first request."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Feed the parser and keep the deadline in step with its state."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._await_head()
        else:
            self._head_arrived()

    def on_response_complete(self) -> None:
        """Go on with what a pipelining client has sent already, which may be half a head."""
        super().on_response_complete()
        half_a_head = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        if half_a_head and not self.transport.is_closing():
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._head_arrived()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP in the service's own error form, unless an answer is already on its way."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        error = ApiError(400, "the request is not valid HTTP/1.1", code="invalid_http")
        body = json.dumps(error.document()).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_head(self) -> None:
        if self._head_deadline is None:
            self._head_deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _head_arrived(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None
