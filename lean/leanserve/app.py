"""The HTTP surface: routes, what each needs, and how a stream's life follows its client's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive

from lean.leanserve.api_error import ApiError, from_refusal
from lean.leanserve.body import read_body
from lean.leanserve.bridge import Bridge, Mailbox
from lean.leanserve.engine import Engine
from lean.leanserve.event_stream import EventStream
from lean.leanserve.gate import Gate, error_response
from lean.leanserve.generation import to_generation
from lean.leanserve.json_body import parse_object
from lean.leanserve.metrics import Metrics
from lean.leanserve.openai_schema import Call, parse_chat, parse_completion
from lean.leanserve.request import Event, Failed, Generated, Refusal
from lean.leanserve.responses import DONE, Answer, answer_for, server_sent_event
from lean.leanserve.runner import RunnerFacts
from lean.leanserve.stats import ServiceStats
from lean.leanserve.stream import Stream
from lean.leanserve.tokenizer import PackTokenizer

# nginx's status for a client that closed before its answer; nobody receives it, it only counts in the
# metrics.
CLIENT_GONE = 499


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What is served. `lock` is the pack's root hash; `started` is in seconds since the epoch."""

    model: str
    contract: str
    lock: str
    runner: str
    started: int

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: which weights and which runner answered."""
        return f"{self.lock[:8]}-{self.runner}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Bounds of one request: bytes of its body, and seconds for it to arrive."""

    body_bytes: int = 1024 * 1024
    body_seconds: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What the routes work on."""

    engine: Engine
    bridge: Bridge
    tokenizer: PackTokenizer
    identity: Identity
    stats: ServiceStats
    limits: HttpLimits


def build_app(service: Service, token: bytes) -> ASGIApp:
    """The ASGI application. Every route, unknown ones too, asks for the token."""
    surface = Surface(service)
    routes = [
        Route("/v1/completions", surface.completions, methods=["POST"]),
        Route("/v1/chat/completions", surface.chat, methods=["POST"]),
        Route("/v1/models", surface.models, methods=["GET"]),
        Route("/health", surface.health, methods=["GET"]),
        Route("/metrics", surface.metrics, methods=["GET"]),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: _on_api_error,
            HTTPException: _on_http_exception,
            ClientDisconnect: _on_client_gone,
            Exception: _on_bug,
        },
    )
    app.router.redirect_slashes = False
    return Gate(
        app, token=token, routes=frozenset(route.path for route in routes), responses=service.stats.responses
    )


class Surface:
    """The routes of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._metrics = Metrics(service.stats, service.engine.status)

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        return await self._generate(request, parse_completion)

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        return await self._generate(request, parse_chat)

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`: the one model, with vLLM's `max_model_len`."""
        identity, facts = self._service.identity, self._facts()
        model = {
            "id": identity.model,
            "object": "model",
            "created": identity.started,
            "owned_by": "leanstack",
            "max_model_len": facts.max_length,
            "contract": identity.contract,
            "lock": identity.lock,
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200 once a real token came out and while the runner answers, else 503."""
        status = self._service.engine.status()
        identity = {"model": self._service.identity.model, "lock": self._service.identity.lock}
        if not status.healthy:
            error = ApiError(503, status.detail, code="not_healthy", retry_after=1)
            body = error.document() | identity | {"status": status.state}
            return JSONResponse(body, status_code=503, headers=error.headers())
        state = {
            "status": "ok",
            "running": status.running,
            "waiting": status.waiting,
            "bucket": status.bucket,
        }
        return JSONResponse(identity | state | {"runner": asdict(self._facts())})

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`: Prometheus text."""
        body, content_type = self._metrics.render()
        return Response(body, headers={"content-type": content_type})

    async def _generate(self, request: Request, parse: Callable[[dict[str, Any]], Call]) -> Response:
        service, limits = self._service, self._service.limits
        facts = self._facts()
        body = await read_body(request, limit=limits.body_bytes, seconds=limits.body_seconds)
        call = parse(parse_object(body))
        models = (service.identity.model, service.identity.contract)
        generation = await to_generation(call, tokenizer=service.tokenizer, facts=facts, models=models)
        mailbox = Mailbox(service.bridge)
        try:
            stream = service.engine.submit(generation, mailbox.post)
        except Refusal as refusal:
            raise from_refusal(refusal) from refusal
        answer = answer_for(
            call,
            generation,
            model=service.identity.model,
            fingerprint=service.identity.fingerprint,
            tokenizer=service.tokenizer,
        )
        follow = _Follow(service.engine, stream, request.receive, mailbox)
        if not call.options.stream:
            return await follow.whole(answer)
        return await follow.events(answer)

    def _facts(self) -> RunnerFacts:
        status = self._service.engine.status()
        if status.state in ("ready", "draining") and self._service.engine.ready.done():
            return self._service.engine.ready.result()
        raise from_refusal(Refusal("failed" if status.state == "failed" else "loading", status.detail))


class _Follow:
    """One stream and the client that waits for it: whichever ends first ends the other."""

    def __init__(self, engine: Engine, stream: Stream, receive: Receive, mailbox: Mailbox) -> None:
        self._engine = engine
        self._stream = stream
        self._mailbox = mailbox
        self._watcher = asyncio.create_task(_watch(receive, mailbox))

    async def whole(self, answer: Answer) -> Response:
        """The answer in one document, once the stream has finished."""
        try:
            events: list[Generated] = []
            while not events or events[-1].finish is None:
                event = await self._mailbox.get()
                if event is None:
                    return Response(status_code=CLIENT_GONE)
                events.append(_generated(event))
            return JSONResponse(answer.whole(events))
        finally:
            self._close()

    async def events(self, answer: Answer) -> Response:
        """The answer as server-sent events. It waits for the first token, so that an early failure has its
        status.
        """
        try:
            event = await self._mailbox.get()
            if event is None:
                self._close()
                return Response(status_code=CLIENT_GONE)
            return EventStream(self._chunks(_generated(event), answer), self._close)
        except BaseException:
            self._close()
            raise

    async def _chunks(self, event: Event | None, answer: Answer) -> AsyncIterator[bytes]:
        while isinstance(event, Generated):
            document = answer.chunk(event)
            if document is not None:
                yield server_sent_event(document)
            if event.finish is not None:
                if answer.options.include_usage:
                    yield server_sent_event(answer.usage_chunk())
                yield DONE
                return
            event = await self._mailbox.get()
        if isinstance(event, Failed):
            yield server_sent_event(from_refusal(event.refusal).document())

    def _close(self) -> None:
        self._watcher.cancel()
        self._engine.cancel(self._stream)


def _generated(event: Event) -> Generated:
    if isinstance(event, Failed):
        raise from_refusal(event.refusal)
    return event


async def _watch(receive: Receive, mailbox: Mailbox) -> None:
    """Tell the mailbox when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    mailbox.post(None)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "unknown_route", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path[:80]}: {error.detail}"
    response = error_response(ApiError(error.status_code, message, code=code))
    response.headers.update(error.headers or {})
    return response


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _on_bug(request: Request, error: Exception) -> Response:
    return error_response(
        ApiError(500, "internal error; the service's log has the traceback", code="internal_error")
    )
