"""The routes, and what each needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lean.leanserve.engine import Engine
from lean.leanserve.http.auth import Gate
from lean.leanserve.http.body import parse_body, read_body
from lean.leanserve.http.errors import ApiError, error_response, from_refusal
from lean.leanserve.http.follow import CLIENT_GONE, Bridge, Follow, Mailbox
from lean.leanserve.http.generation import to_generation
from lean.leanserve.http.metrics import Metrics
from lean.leanserve.http.responses import answer_for
from lean.leanserve.http.schema import Call, parse_chat, parse_completion
from lean.leanserve.request import Refusal
from lean.leanserve.runner import RunnerFacts
from lean.leanserve.stats import ServiceStats
from lean.leanserve.tokenizer import PackTokenizer


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
    answers = Routes(service)
    routes = [
        Route("/v1/completions", answers.completions, methods=["POST"]),
        Route("/v1/chat/completions", answers.chat, methods=["POST"]),
        Route("/v1/models", answers.models, methods=["GET"]),
        Route("/health", answers.health, methods=["GET"]),
        Route("/metrics", answers.metrics, methods=["GET"]),
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


class Routes:
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
        call = parse(parse_body(body))
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
        follow = Follow(service.engine, stream, request.receive, mailbox)
        if not call.options.stream:
            return await follow.whole(answer)
        return await follow.events(answer)

    def _facts(self) -> RunnerFacts:
        status = self._service.engine.status()
        if status.state in ("ready", "draining") and self._service.engine.ready.done():
            return self._service.engine.ready.result()
        raise from_refusal(Refusal("failed" if status.state == "failed" else "loading", status.detail))


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
