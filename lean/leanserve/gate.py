"""The outermost layer: counts every response and lets nobody in without the token."""

from __future__ import annotations

from collections import Counter

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lean.leanserve.api_error import ApiError
from lean.leanserve.auth import check_caller


def error_response(error: ApiError) -> JSONResponse:
    """An `ApiError` as its JSON response."""
    return JSONResponse(error.document(), status_code=error.status, headers=error.headers())


class Gate:
    """ASGI middleware. `routes` are the paths counted by name; all others count as `other`, so labels stay
    few.
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
