"""Who may talk to the page: the browser that was given the token, under this very address."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
ENTER = "/enter"  # the address that is printed: it takes the token and leads to /


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The secrets of one start: the token of the printed address, and the cookie it is exchanged for.

    A cookie belongs to a machine, not to a port, so its name holds the port: two pages do not end each
    other's session.
    """

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    cookie: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def name(self) -> str:
        """Of the cookie."""
        return f"leanstack_ui_{self.port}"

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://127.0.0.1:{self.port}{ENTER}?token={self.token}"


class Guard:
    """The outermost ASGI layer: refuses, lets in, and adds the headers that keep a browser strict."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        assert scope["type"] == "http", "the server runs without websockets and lifespan events"

        async def strict_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._answer(scope)
        await (answer or self._app)(scope, receive, strict_send)

    def _answer(self, scope: Scope) -> Response | None:
        """The guard's own answer, None for a request that may pass."""
        found = _gathered(scope["headers"])
        hosts, origins = found.get("host", []), found.get("origin", [])
        here = {f"{name}:{self._keys.port}" for name in ("127.0.0.1", "localhost")}
        if len(hosts) != 1 or hosts[0].lower() not in here:
            return _refusal(403, "Host: this page answers under its own address only")
        if any(origin.lower() != f"http://{hosts[0].lower()}" for origin in origins):
            return _refusal(403, "Origin: only the page itself may ask")
        if scope["method"] not in ("GET", "HEAD") and len(origins) != 1:
            return _refusal(403, "Origin: missing; only the page itself may ask")
        if scope["path"] == ENTER:
            return self._enter(scope)
        cookies = cookie_parser("; ".join(found.get("cookie", [])))
        if not _equal(cookies.get(self._keys.name, ""), self._keys.cookie):
            return _refusal(401, "open the address that `invoke ui` printed; it holds this start's token")
        return None

    def _enter(self, scope: Scope) -> Response:
        """Exchange the token for the cookie.

        A page that goes on by itself, not a redirect: after one, a browser that followed a link of another
        site or of a file sends no SameSite=Strict cookie.
        """
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["method"] != "GET" or not _equal(query.get("token", [""])[0], self._keys.token):
            return _refusal(401, "the token is not this start's; open the address that `invoke ui` printed")
        answer = HTMLResponse(_GO_ON)
        answer.set_cookie(self._keys.name, self._keys.cookie, httponly=True, samesite="strict", path="/")
        return answer


def _gathered(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return found


def _equal(given: str, kept: str) -> bool:
    return hmac.compare_digest(given.encode(), kept.encode())


def _refusal(status: int, message: str) -> Response:
    body = json.dumps({"error": {"message": message}})
    return Response(body, status_code=status, media_type="application/json")


_GO_ON = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>leanstack</title>
<meta http-equiv="refresh" content="0;url=/"></head>
<body><p><a href="/">Go on to the page</a></p></body></html>
"""
