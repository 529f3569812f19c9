"""The routes of the page, and what each needs."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Send

from lean.errors import LeanError, NotReadyError, PreflightError, UsageError, error_document
from remote.ui.assets import Assets
from remote.ui.choices import (
    Choices,
    Order,
    choices_document,
    order_from,
    prompt_from,
    standing_from,
)
from remote.ui.desk import Desk
from remote.ui.guard import Guard, Keys
from remote.ui.history import History, wanted_from
from remote.ui.hosts import HostStates
from remote.ui.soaks import Soaks
from remote.ui.standing import Standings
from remote.ui.streams import Columns, Forwards

_BODY_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the routes work on. `choices` reads the lists as the checkout has them now."""

    choices: Callable[[], Choices]
    desk: Desk
    hosts: HostStates
    forwards: Forwards
    history: History
    soaks: Soaks
    standings: Standings
    assets: Assets


def build_app(page: Page, keys: Keys) -> ASGIApp:
    """The ASGI application behind its guard."""
    routes = Routes(page)
    run = "/{host}/{profile}/{run}"
    app = Starlette(
        routes=[
            Route("/", routes.document("index.html")),
            Route(f"/runs{run}", routes.document("run.html")),
            Route("/favicon.ico", routes.document("icon.svg")),
            Route("/static/{name}", routes.static),
            Route("/api/choices", routes.choices),
            Route("/api/hosts/{host}", routes.host),
            Route("/api/operation", routes.begin, methods=["POST"]),
            Route("/api/operation/cancel", routes.cancel, methods=["POST"]),
            Route("/api/events", routes.events),
            Route("/api/side-by-side", routes.side_by_side, methods=["POST"]),
            Route("/api/history", routes.history),
            Route(f"/api/runs{run}", routes.run),
            Route(f"/api/runs{run}/{{file}}", routes.file),
            Route("/api/soak/standing", routes.standing, methods=["POST"]),
            Route("/api/soak/{host}/{plan}", routes.soak),
        ],
        exception_handlers={
            LeanError: _on_failure,
            HTTPException: _on_http,
            ClientDisconnect: lambda request, error: Response(status_code=499),
            Exception: _on_bug,
        },
    )
    app.router.redirect_slashes = False
    return Guard(app, keys)


class Routes:
    """The routes of one page."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def document(self, name: str) -> Callable[[Request], Response]:
        """`GET` of one file of the page; what an HTML page shows it asks for afterwards."""
        return lambda request: self._page.assets.response(name)

    async def static(self, request: Request) -> Response:
        """`GET /static/{name}`: one of the files that were read at the start."""
        return self._page.assets.response(request.path_params["name"])

    async def choices(self, request: Request) -> Response:
        """`GET /api/choices`: hosts, profiles and systems."""
        return JSONResponse(choices_document(self._page.choices()))

    async def host(self, request: Request) -> Response:
        """`GET /api/hosts/{host}`: its state; 404 for one that hosts.yaml does not name."""
        try:
            host = self._page.choices().host(request.path_params["host"])
        except UsageError as error:
            return _failure(404, error)
        return JSONResponse(asdict(await self._page.hosts.state(host)))

    async def begin(self, request: Request) -> Response:
        """`POST /api/operation`: 202 and the operation, 409 while another one runs."""
        order = order_from(await _body(request), self._page.choices())
        if self._page.desk.busy:
            return self._busy()
        await self._page.forwards.drop()  # it may change what they lead to
        try:
            return JSONResponse(asdict(await self._page.desk.begin(order)), status_code=202)
        except PreflightError:
            return self._busy()

    async def cancel(self, request: Request) -> Response:
        """`POST /api/operation/cancel`: 202, or 409 when nothing runs."""
        try:
            return JSONResponse(asdict(self._page.desk.cancel()), status_code=202)
        except NotReadyError as error:
            return _failure(409, error)

    async def events(self, request: Request) -> Response:
        """`GET /api/events`: server-sent events `operation` and `line`, from the operation's start."""

        async def stream() -> AsyncIterator[str]:
            yield "retry: 1000\n\n"
            async for event in self._page.desk.watch():
                if event is None:
                    yield ": still here\n\n"
                else:
                    yield f"event: {event.name}\ndata: {json.dumps(event.data)}\n\n"

        return _Stream(stream(), media_type="text/event-stream")

    async def side_by_side(self, request: Request) -> Response:
        """`POST /api/side-by-side`: both answers as lines of JSON while they come; it is an operation too."""
        prompt = prompt_from(await _body(request), self._page.choices())
        if self._page.desk.busy:
            return self._busy()
        title = (
            f"{prompt.left.system} on {prompt.left.host} beside {prompt.right.system} on {prompt.right.host}"
        )
        order = Order(kind="side-by-side", title=title, words=prompt.left.words)
        columns = Columns(prompt, self._page.forwards)

        async def stream() -> AsyncIterator[str]:
            async with self._page.desk.hold(order, columns.stop), aclosing(columns.events()) as events:
                async for document in events:
                    yield "\n" if document is None else json.dumps(document) + "\n"

        return _Stream(stream(), media_type="application/x-ndjson")

    async def history(self, request: Request) -> Response:
        """`GET /api/history?host=&profile=&page=&anew=1`: a page of the table, and the series."""
        query: Mapping[str, str] = request.query_params
        found = await self._page.history.page(wanted_from(query), anew=query.get("anew") == "1")
        return JSONResponse(found)

    async def run(self, request: Request) -> Response:
        """`GET /api/runs/{host}/{profile}/{run}`: one run in full."""
        try:
            return JSONResponse(await self._page.history.run(*_run_names(request)))
        except NotReadyError as error:
            return _failure(404, error)

    async def file(self, request: Request) -> Response:
        """`GET /api/runs/{host}/{profile}/{run}/{file}`: a picture of the run, or its report.md as text."""
        try:
            file = request.path_params["file"]
            found, media_type = await self._page.history.file(*_run_names(request), file)
            return Response(found, media_type=media_type)
        except NotReadyError as error:
            return _failure(404, error)

    async def soak(self, request: Request) -> Response:
        """`GET /api/soak/{host}/{plan}?record=`: the names of the records, and one of them in full."""
        choices = self._page.choices()
        try:
            host = choices.host(request.path_params["host"]).name
            plan = choices.plan(request.path_params["plan"]).name
            wanted = request.query_params.get("record")
            return JSONResponse(await self._page.soaks.newest(host, plan, wanted))
        except (UsageError, NotReadyError) as error:
            return _failure(404, error)

    async def standing(self, request: Request) -> Response:
        """`POST /api/soak/standing`: how far a soak is, as its host keeps it; 409 while an operation runs."""
        order = standing_from(await _body(request), self._page.choices())
        try:
            return JSONResponse(await self._page.standings.ask(order))
        except PreflightError:
            return self._busy()

    def _busy(self) -> Response:
        now = self._page.desk.operation
        title = now.title if now else "an operation"
        error = PreflightError(f"one operation at a time: {title!r} runs; wait for its end or cancel it")
        document = error_document(error) | {"operation": asdict(now) if now else None}
        return JSONResponse(document, status_code=409)


class _Stream(StreamingResponse):
    """Closes its generator when the browser leaves, and does not wait for the garbage collector."""

    async def stream_response(self, send: Send) -> None:
        """Send it to its end."""
        try:
            await super().stream_response(send)
        finally:
            if isinstance(self.body_iterator, AsyncGenerator):
                await self.body_iterator.aclose()


def _run_names(request: Request) -> tuple[str, str, str]:
    names = request.path_params
    return names["host"], names["profile"], names["run"]


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Errors: `UsageError`."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise UsageError("content-type: expected application/json")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _BODY_BYTES:
            raise UsageError(f"the request is larger than {_BODY_BYTES} bytes")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("the request is no JSON") from None
    if not isinstance(document, dict):
        raise UsageError("the request is no JSON object")
    return document


def _failure(status: int, error: LeanError) -> Response:
    return JSONResponse(error_document(error), status_code=status)


async def _on_failure(request: Request, error: Exception) -> Response:
    assert isinstance(error, LeanError)
    return _failure(400 if isinstance(error, UsageError) else 422, error)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:80]}: {error.detail}"
    return JSONResponse({"error": {"message": message}}, status_code=error.status_code)


async def _on_bug(request: Request, error: Exception) -> Response:
    return JSONResponse(
        {"error": {"message": "internal error; the terminal of `invoke ui` has the traceback"}},
        status_code=500,
    )
