"""The ASGI application between a client and a real engine that damages answers on purpose.

Every route, header and status passes through. Two kinds of damage:

- `slower`: of a generating request each piece of the answer, from the head to the end, is passed on when
  (1 + share) times the seconds have gone by that the engine took for it. Never earlier, and however the
  engine cut its answer into pieces.
- `cut`: every so-many-th completion is asked of the engine with half its `max_tokens`. So the answer is the
  first half of what it would have been and ends as answers do, whole or streamed: finish reason `length`, its
  own usage, `[DONE]`. One that would have ended by itself within that half is as it was.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

CONNECT_S = 10.0
MAX_BODY_BYTES = 8 << 20
_PIECES = 1024  # of one answer that wait for their time, each of at most 64 KiB
_DEFAULT_MAX_TOKENS = 16  # OpenAI's, of completions
_COMPLETIONS = "/v1/completions"
_GENERATING = (_COMPLETIONS, "/v1/chat/completions")
_LOOPBACK_HOST = re.compile(rb"(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?", re.IGNORECASE)
_LOOPBACK_ORIGIN = re.compile(rb"https?://(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?", re.IGNORECASE)
# Of one connection and not of the message: RFC 9110, 7.6.1.
_HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    )
)
_MADE_ANEW = frozenset((b"host", b"content-length", b"expect"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What is done to answers. `share`: of the time, for `slower`; `every`: which completion is `cut`."""

    kind: Literal["slower", "cut"]
    share: float = 0.06
    every: int = 10


def halved(body: bytes) -> bytes | None:
    """A completion's body that asks for half the tokens, rounded down; None where there is no half."""
    try:
        document = json.loads(body)
        asked = document.get("max_tokens")
    except (ValueError, AttributeError, RecursionError):
        return None  # the engine says what is wrong with it
    asked = _DEFAULT_MAX_TOKENS if asked is None else asked
    if type(asked) is not int or asked < 2:
        return None
    document["max_tokens"] = asked // 2
    if type(document.get("min_tokens")) is int:
        document["min_tokens"] = min(document["min_tokens"], asked // 2)
    return json.dumps(document).encode()


class Proxy:
    """The application. `upstream`: the engine's URL. `broken_off` counts answers that our own end cut."""

    def __init__(self, upstream: str, damage: Damage) -> None:
        self.broken_off = 0
        self._upstream = httpx.URL(upstream)
        self._damage = damage
        self._completions = 0
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(
                None, connect=CONNECT_S
            ),  # how long an answer may take is the client's to say
            # A connection for each request: one that idles may be closed by the engine as it is used again.
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; when its client goes, the engine's answer is dropped at once."""
        assert scope["type"] == "http", "the server runs without websockets and lifespan events"
        refusal = _refusal(scope["headers"])
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        try:
            body = await _read_body(Request(scope, receive))
        except ClientDisconnect:
            return
        if body is None:
            message = f"the body is longer than {MAX_BODY_BYTES} bytes"
            await _error(413, message, "body_too_large")(scope, receive, send)
            return
        answer = _Answer(self._client, self._to_engine(scope, body), self._share(scope))
        passing, leaving = asyncio.create_task(answer.pass_on(send)), asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((passing, leaving), return_when=asyncio.FIRST_COMPLETED)
            problem = passing.result() if passing.done() else None
            status, code = 502, "engine_unreachable"
        except asyncio.CancelledError:  # the server ends before the answer does
            self.broken_off += 1
            problem = "broken off, for the proxy was told to end"
            status, code = 503, "shutting_down"
        finally:
            passing.cancel()
            leaving.cancel()
            await asyncio.wait((passing, leaving))
        if problem is not None:
            said = f"{scope['method']} {scope['path'][:80]}: {problem}"
            print(said, file=sys.stderr, flush=True)
            if not answer.started:
                await _error(status, said, code)(scope, receive, send)
            # else it stays without an end: the server closes the connection, and the client sees it broken

    async def close(self) -> None:
        """Close what is open to the engine."""
        await self._client.aclose()

    def _to_engine(self, scope: Scope, body: bytes) -> httpx.Request:
        if self._damage.kind == "cut" and (scope["method"], scope["path"]) == ("POST", _COMPLETIONS):
            half = halved(body)
            if half is not None:
                self._completions += 1
                body = half if self._completions % self._damage.every == 0 else body
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        url = self._upstream.copy_with(raw_path=b"/" + scope["raw_path"].lstrip(b"/") + query)
        left_out = _HOP_BY_HOP | _MADE_ANEW
        headers = [(name, value) for name, value in scope["headers"] if name not in left_out]
        content = body if body or scope["method"] in ("POST", "PUT", "PATCH") else None
        return httpx.Request(scope["method"], url, headers=headers, content=content)

    def _share(self, scope: Scope) -> float:
        generating = scope["method"] == "POST" and scope["path"] in _GENERATING
        return self._damage.share if generating and self._damage.kind == "slower" else 0.0


class _Answer:
    """One answer on its way from the engine to a client. `started`: its head was passed on."""

    def __init__(self, client: httpx.AsyncClient, request: httpx.Request, share: float) -> None:
        self.started = False
        self._client = client
        self._request = request
        self._share = share
        self._pieces: asyncio.Queue[tuple[float, dict[str, Any] | Exception]] = asyncio.Queue(_PIECES)
        self._clock = asyncio.get_running_loop().time

    async def pass_on(self, send: Send) -> str | None:
        """Pass every piece on in its time. Returns what was wrong with the engine; then no end came."""
        sent = self._clock()
        # The reader never waits for a piece's time, else the next one would seem to come later than it did.
        reading = asyncio.create_task(self._read())
        try:
            while True:
                came, piece = await self._pieces.get()
                await self._until(sent + (1 + self._share) * (came - sent))
                if isinstance(piece, httpx.HTTPError):
                    said = (
                        f"the engine at {self._request.url.netloc.decode()}: {type(piece).__name__}: {piece}"
                    )
                    return said.rstrip(": ")
                if isinstance(piece, Exception):
                    raise piece
                await send(piece)
                self.started = True
                if not piece.get("more_body", True):
                    return None
        finally:
            reading.cancel()
            await asyncio.wait((reading,))

    async def _read(self) -> None:
        try:
            response = await self._client.send(self._request, stream=True)
            try:
                headers = [(name.lower(), value) for name, value in response.headers.raw]
                kept = [(name, value) for name, value in headers if name not in _HOP_BY_HOP]
                await self._put(
                    {"type": "http.response.start", "status": response.status_code, "headers": kept}
                )
                async for chunk in response.aiter_raw():
                    await self._put({"type": "http.response.body", "body": chunk, "more_body": True})
                await self._put({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                await response.aclose()  # before an answer's end this closes the connection to the engine
        except Exception as error:  # whatever it is, the other side must not wait for ever
            await self._put(error)

    async def _put(self, piece: dict[str, Any] | Exception) -> None:
        await self._pieces.put((self._clock(), piece))

    async def _until(self, moment: float) -> None:
        while self._share and (left := moment - self._clock()) > 0:
            await asyncio.sleep(left)


async def _read_body(request: Request) -> bytes | None:
    """The whole body, or None where it is too long."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


async def _gone(receive: Receive) -> None:
    """Until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal(headers: Iterable[tuple[bytes, bytes]]) -> JSONResponse | None:
    """What a web page that rebinds its name to 127.0.0.1 is told, as the service does it."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 or not _LOOPBACK_HOST.fullmatch(hosts[0]):
        return _error(403, "Host: only 127.0.0.1 and localhost are served", "host_not_allowed")
    if not all(_LOOPBACK_ORIGIN.fullmatch(value) for name, value in headers if name == b"origin"):
        return _error(403, "Origin: only pages of this machine are served", "origin_not_allowed")
    return None


def _error(status: int, message: str, code: str) -> JSONResponse:
    """OpenAI's error document; the connection is closed, for what was not read of it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(body, status, {"connection": "close"})
