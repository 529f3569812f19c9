"""An OpenAI-compatible streaming client that records when every byte arrived.

While a stream runs it only takes times and keeps bytes; events are parsed after the stream ended, so that the
client costs the machine it measures as little as possible. A request that fails becomes a sample with its
error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import httpx

from lean.bench.dialect import VLLM, Dialect, PromptForm
from lean.bench.prompt import Prompt, ids_sha256
from lean.bench.sample import Phase, Sample
from lean.bench.stream import StreamError, read_answer
from lean.errors import NotReadyError, UsageError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MAX_STREAM_BYTES = 64 << 20
_EXCERPT = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Deadlines in seconds. `read` bounds the wait for the next bytes, `request` a whole request."""

    connect: float = 10.0
    read: float = 120.0
    request: float = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """One greedy completion of exactly `max_new_tokens` tokens.

    `prompt_form` says what goes over the wire, `scheduled_ns` when an open loop was due to send it.
    """

    model: str
    prompt: Prompt
    prompt_form: PromptForm
    max_new_tokens: int
    phase: Phase
    stream: int
    round: int
    dialect: Dialect = VLLM
    scheduled_ns: int | None = None

    def body(self) -> dict[str, Any]:
        """The JSON sent to /v1/completions."""
        return {
            "model": self.model,
            "prompt": list(self.prompt.ids) if self.prompt_form == "ids" else self.prompt.text,
            "max_tokens": self.max_new_tokens,
            "temperature": 0.0,
            "stream": True,
            **self.dialect.fields(self.max_new_tokens),
        }


@dataclass(slots=True)
class _Wire:
    """What one request has received so far; it outlives a broken connection."""

    chunks: list[tuple[int, bytes]] = field(default_factory=list)
    status: int | None = None
    error: str | None = None


class CompletionClient:
    """Talks to one service on this machine. Use as an async context manager."""

    def __init__(
        self,
        url: str,
        token: str | None,
        settings: ClientSettings,
        clock_ns: Callable[[], int],
        on_sample: Callable[[Sample], object] = lambda sample: None,
    ) -> None:
        """`clock_ns` gives nanoseconds since the run's origin.

        `on_sample` hears of every request when it ends, of one that is cancelled too.

        Errors: `UsageError` for a URL off this machine.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UsageError(f"{url!r}: {error}") from None
        if parsed.scheme != "http" or parsed.host not in _LOOPBACK:
            raise UsageError(
                f"{url!r}: expected http://127.0.0.1:PORT; bench runs beside the service, on its host"
            )
        authorization = {"Authorization": f"Bearer {token}"}
        self._url = url
        self._settings = settings
        self._clock_ns = clock_ns
        self._on_sample = on_sample
        self._http = httpx.AsyncClient(
            base_url=parsed,
            headers={"Accept-Encoding": "identity"} | (authorization if token is not None else {}),
            timeout=httpx.Timeout(settings.read, connect=settings.connect),
            limits=httpx.Limits(),  # none: a request that waits for a connection here would not be in flight
            trust_env=False,  # the user's proxy or netrc has no business with a loopback service
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def model(self) -> str:
        """The name of the one model served.

        Errors: `NotReadyError` when the service is not there or not ready.
        """
        health = await self._get("/health")
        if health.status_code != 200:
            said = f"{health.status_code}: {_excerpt(health.text)}"
            raise NotReadyError(f"{self._url}/health says {said}; see the service's log")
        models = await self._get("/v1/models")
        try:
            return str(models.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            said = f"{models.status_code}: {_excerpt(models.text)}"
            raise NotReadyError(f"{self._url}/v1/models names no model, it says {said}") from None

    async def complete(self, request: CompletionRequest) -> Sample:
        """Stream one completion to its end. Never raises for what the service does; see `Sample.error`."""
        sample, _ = await self.answer(request)
        return sample

    async def answer(self, request: CompletionRequest) -> tuple[Sample, str]:
        """`complete`, and the whole text of the answer as far as it came."""
        started = datetime.now(UTC).isoformat(timespec="milliseconds")
        wire = _Wire()
        sent = self._clock_ns()
        try:
            async with asyncio.timeout(self._settings.request):
                await self._receive(request, wire)
        except httpx.HTTPError as problem:
            wire.error = f"{type(problem).__name__}: {problem}".rstrip(": ")
        except TimeoutError:
            wire.error = f"no end within {self._settings.request:g} s"
        except asyncio.CancelledError:
            wire.error = "interrupted"
            self._on_sample(_sample(request, wire, started, sent, self._clock_ns())[0])
            raise
        sample, text = _sample(request, wire, started, sent, self._clock_ns())
        self._on_sample(sample)
        return sample, text

    async def _get(self, path: str) -> httpx.Response:
        try:
            return await self._http.get(path)
        except httpx.HTTPError as error:
            problem = f"{type(error).__name__} {error}".strip()
            raise NotReadyError(f"no service at {self._url}: {problem}; start it with remote.serve") from None

    async def _receive(self, request: CompletionRequest, wire: _Wire) -> None:
        async with self._http.stream("POST", "/v1/completions", json=request.body()) as response:
            wire.status = response.status_code
            if response.status_code != 200:
                text = (await response.aread())[:4096].decode("utf-8", "replace")
                wire.error = f"HTTP {response.status_code}: {_excerpt(text)}"
                return
            size = 0
            async for chunk in response.aiter_raw():
                wire.chunks.append((self._clock_ns(), chunk))
                size += len(chunk)
                if size > _MAX_STREAM_BYTES:
                    wire.error = f"more than {_MAX_STREAM_BYTES} bytes in one stream"
                    return


def clock_since_now() -> Callable[[], int]:
    """A clock in nanoseconds since this call (`time.perf_counter_ns`, monotonic)."""
    origin = time.perf_counter_ns()
    return lambda: time.perf_counter_ns() - origin


def _sample(
    request: CompletionRequest, wire: _Wire, started: str, sent: int, ended: int
) -> tuple[Sample, str]:
    """The request as it went, and the text that came."""
    error = wire.error
    try:
        answer = read_answer(wire.chunks)
    except StreamError as problem:
        answer, error = problem.answer, error or str(problem)
    finished = answer.finished if request.dialect.ends_with_done else answer.told_its_end
    if error is None and not finished:
        end = "[DONE]" if request.dialect.ends_with_done else "it told usage and finish reason"
        error = f"the stream ended before {end}"
    body = request.body()
    sample = Sample(
        phase=request.phase,
        stream=request.stream,
        round=request.round,
        prompt_sha256=request.prompt.sha256,
        prompt_tokens=len(request.prompt.ids),
        max_new_tokens=request.max_new_tokens,
        temperature=body["temperature"],
        ignore_eos=True,  # every dialect asks for it in its own words
        started_utc=started,
        sent_ns=sent,
        first_byte_ns=wire.chunks[0][0] if wire.chunks else None,
        event_ns=answer.event_ns,
        event_tokens=answer.event_tokens,
        end_ns=ended,
        http_status=wire.status,
        usage_prompt_tokens=answer.prompt_tokens,
        usage_completion_tokens=answer.completion_tokens,
        finish_reason=answer.finish_reason,
        token_ids_sha256=ids_sha256(answer.token_ids) if answer.token_ids is not None else None,
        text_excerpt=answer.text[:_EXCERPT],
        finished=finished,
        error=error,
        scheduled_ns=request.scheduled_ns,
    )
    return sample, answer.text


def _excerpt(text: str) -> str:
    """The message of an OpenAI-style error, or the start of whatever came, on one line."""
    with contextlib.suppress(ValueError, LookupError, TypeError):  # then it was no such error
        text = json.loads(text)["error"]["message"]
    line = " ".join(str(text).split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1] + "…"
