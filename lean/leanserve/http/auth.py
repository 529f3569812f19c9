"""Who may talk to the service: someone on this machine who holds the token."""

from __future__ import annotations

import hmac
import re
from collections import Counter
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lean.leanserve.http.errors import ApiError, error_response

_LOOPBACK_HOST = re.compile(rb"(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?", re.IGNORECASE)
_LOOPBACK_ORIGIN = re.compile(rb"https?://(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?", re.IGNORECASE)


class Gate:
    """The outermost ASGI layer: counts every response and lets nobody in without the token.

    `routes` are the paths counted by name; all others count as `other`, so labels stay few.
    """

    def __init__(
        self, app: ASGIApp, *, token: bytes, routes: frozenset[str], responses: Counter[tuple[str, int]]
    ) -> None:
        self._app = app
        self._token = token
        self._routes = routes
        self._responses = responses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        assert scope["type"] == "http", "the server runs without websockets and lifespan events"
        route = scope["path"] if scope["path"] in self._routes else "other"

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._responses[route, message["status"]] += 1
            await send(message)

        try:
            check_caller(scope["headers"], self._token)
        except ApiError as error:
            await error_response(error)(scope, receive, counting_send)
            return
        await self._app(scope, receive, counting_send)


def check_caller(headers: Iterable[tuple[bytes, bytes]], token: bytes) -> None:
    """Refuse a foreign Host or Origin (a web page that rebinds its name to 127.0.0.1) and a wrong token.

    `headers` have lower-case names. Errors: `ApiError` 403 for Host and Origin, 401 for the token.
    """
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    hosts = found.get(b"host", [])
    if len(hosts) != 1 or not _LOOPBACK_HOST.fullmatch(hosts[0]):
        raise ApiError(403, "Host: only 127.0.0.1 and localhost are served", code="host_not_allowed")
    if not all(_LOOPBACK_ORIGIN.fullmatch(origin) for origin in found.get(b"origin", [])):
        raise ApiError(403, "Origin: only pages of this machine are served", code="origin_not_allowed")
    given = found.get(b"authorization", [])
    scheme, _, value = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    if not (hmac.compare_digest(value.strip(), token) and scheme.lower() == b"bearer"):
        message = "send the service's token: Authorization: Bearer <token>"
        raise ApiError(401, message, code="invalid_api_key")
