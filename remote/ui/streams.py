"""Two services answer the same prompt, side by side: forwards to them, and their streams with live figures.

Names and definitions of the figures are those of `lean.bench.metrics`. The times are taken here, behind the
forward, so they hold its cost too; figures that count come from `remote.bench` and `remote.compare`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from lean.bearer import read_token
from lean.bench.dialect import DIALECTS, VLLM, Dialect
from lean.errors import LeanError, NotReadyError
from remote.ui.child import Child, Patience
from remote.ui.choices import Commands, Prompt, StreamSource

EVERY_S = 0.05  # between two updates of a column: twenty a second look live and cost little
_TIMEOUT = httpx.Timeout(120.0, connect=10.0)
_EXCERPT = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A service at a port of this machine. The token never leaves this process; a baseline has none.

    `model`: its name in requests, None where /v1/models says it.
    """

    url: str
    token: str | None
    model: str | None = None
    dialect: Dialect = VLLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is known of an answer so far. Rates and times are None until they mean something."""

    tokens: int
    seconds: float
    tokens_per_s: float | None
    ttft_ms: float | None
    tpot_ms: float | None


class Forwards:
    """`remote.forward` children, one a source, kept until `drop`."""

    def __init__(self, commands: Commands, patience: Patience | None = None) -> None:
        self._commands = commands
        self._patience = patience or Patience(interrupt=5.0)
        self._children: set[Child] = set()
        self._open: dict[StreamSource, tuple[Child, Endpoint]] = {}

    async def endpoint(self, source: StreamSource) -> Endpoint:
        """Where the source answers. Errors: `NotReadyError` with what the forward said, `PreflightError`."""
        child, endpoint = self._open.get(source, (None, None))
        if child is not None and endpoint is not None and child.running:
            return endpoint
        argv = self._commands.argv(source.words)
        child = await Child.start(argv, self._commands.folder, patience=self._patience)
        self._children.add(child)
        endpoint = await self._answered(child, source)
        self._open[source] = (child, endpoint)
        return endpoint

    async def drop(self) -> None:
        """End every forward; what they led to may change now."""
        self._open.clear()
        children = tuple(self._children)
        await asyncio.gather(*(child.stop() for child in children))
        self._children.difference_update(children)

    async def _answered(self, child: Child, source: StreamSource) -> Endpoint:
        document = await child.document()
        if document is None or "error" in document:
            ended = await child.ended()
            raise NotReadyError(ended.message or f"{source.system} on {source.host}: the forward ended")
        try:
            url, file = str(document["url"]).removesuffix("/v1"), document["token_file"]
            dialect = DIALECTS[document.get("dialect", VLLM.name)]
        except KeyError as missing:
            raise NotReadyError(f"{source.system} on {source.host}: the forward named no {missing}") from None
        token = (await asyncio.to_thread(read_token, Path(file))).decode("ascii") if file else None
        return Endpoint(url=url, token=token, model=document.get("model"), dialect=dialect)


class Columns:
    """Both answers to one prompt. To be made and used inside one event loop."""

    def __init__(self, prompt: Prompt, forwards: Forwards) -> None:
        self._prompt = prompt
        self._forwards = forwards
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._left_ended = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def events(self) -> AsyncGenerator[dict[str, Any] | None, None]:
        """Documents `{"side", "event", …}` of both columns as they come, until both have ended.

        None comes now and then, so that a page that left is noticed. A column that fails says so and leaves
        the other alone.
        """
        self._tasks = [asyncio.create_task(self._left()), asyncio.create_task(self._right())]
        try:
            while not (all(task.done() for task in self._tasks) and self._queue.empty()):
                try:
                    yield await asyncio.wait_for(self._queue.get(), 0.5)
                except TimeoutError:
                    yield None
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Cut both answers; the services notice and free their slots."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _left(self) -> None:
        try:
            await self._column("left", self._prompt.left)
        finally:
            self._left_ended.set()

    async def _right(self) -> None:
        if not self._prompt.together:
            self._tell("right", "state", text="waits for the other column")
            await self._left_ended.wait()
        await self._column("right", self._prompt.right)

    async def _column(self, side: str, source: StreamSource) -> None:
        try:
            self._tell(side, "state", text="connecting")
            endpoint = await self._forwards.endpoint(source)
            async for event, data in _completion(endpoint, self._prompt):
                self._tell(side, event, **data)
        except (LeanError, OSError) as error:
            self._tell(side, "error", text=str(error))
        except httpx.HTTPError as error:
            what = f"{source.system} on {source.host}: {type(error).__name__} {error}"
            self._tell(side, "error", text=what.strip())
        except asyncio.CancelledError:
            self._tell(side, "error", text="cancelled")
            raise

    def _tell(self, side: str, event: str, **data: Any) -> None:
        self._queue.put_nowait({"side": side, "event": event, **data})


async def _completion(endpoint: Endpoint, prompt: Prompt) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """One stream: its text in pieces with the figures so far, and at the end the final ones."""
    authorization = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token is not None else {}
    headers = {"Accept-Encoding": "identity"} | authorization
    async with httpx.AsyncClient(
        base_url=endpoint.url, headers=headers, timeout=_TIMEOUT, trust_env=False
    ) as client:
        body = {
            "model": endpoint.model or _model(await client.get("/v1/models")),
            "prompt": prompt.text,
            "max_tokens": prompt.tokens,
            "temperature": 0.0,
            "stream": True,
            **endpoint.dialect.fields(prompt.tokens),  # both columns then write the same number of tokens
        }
        yield "state", {"text": "waiting for the first token", "model": body["model"]}
        count = _Count()
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                raise NotReadyError(_refusal(response.status_code, await response.aread()))
            unsaid, said = "", 0.0
            async for message in _messages(response):
                unsaid += count.take(message)
                now = time.perf_counter()
                if unsaid and now - said >= EVERY_S:
                    yield "text", {"text": unsaid, **asdict(count.figures())}
                    unsaid, said = "", now
        yield "end", {"text": unsaid, "finish": count.finish, **asdict(count.figures())}


class _Count:
    """Tokens and times of one stream, from its events."""

    def __init__(self) -> None:
        self._sent = time.perf_counter()
        self._first: float | None = None
        self._last = self._sent
        self._tokens = 0
        self.finish: str | None = None

    def take(self, message: dict[str, Any]) -> str:
        """The text of an event; its tokens are its ids', else one where it has text, until usage tells."""
        choices = message.get("choices") or [{}]
        text = str(choices[0].get("text") or "")
        ids = choices[0].get("token_ids")
        new = len(ids) if isinstance(ids, list) else int(bool(text))
        if new:
            self._last = time.perf_counter()
            self._first = self._first or self._last
            self._tokens += new
        self.finish = choices[0].get("finish_reason") or self.finish
        usage = message.get("usage") or {}
        if isinstance(usage.get("completion_tokens"), int) and not new:
            self._tokens = usage["completion_tokens"]
        return text

    def figures(self) -> Figures:
        """The figures so far."""
        seconds = self._last - self._sent
        if self._first is None:
            return Figures(tokens=self._tokens, seconds=0.0, tokens_per_s=None, ttft_ms=None, tpot_ms=None)
        after = self._tokens - 1
        return Figures(
            tokens=self._tokens,
            seconds=seconds,
            tokens_per_s=self._tokens / seconds if seconds else None,
            ttft_ms=(self._first - self._sent) * 1e3,
            tpot_ms=(self._last - self._first) / after * 1e3 if after > 0 else None,
        )


async def _messages(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each event. Errors: `NotReadyError` for an error event or what is no JSON."""
    async for line in response.aiter_lines():
        payload = line.removeprefix("data:").strip()
        if not line.startswith("data:") or payload == "[DONE]":
            continue
        try:
            message = json.loads(payload)
        except ValueError:
            raise NotReadyError(f"the stream is not what the API promises: {payload[:_EXCERPT]!r}") from None
        if not isinstance(message, dict) or "error" in message:
            raise NotReadyError(f"the service reports {json.dumps(message)[:_EXCERPT]}")
        yield message


def _model(models: httpx.Response) -> str:
    try:
        return str(models.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise NotReadyError(_refusal(models.status_code, models.content)) from None


def _refusal(status: int, body: bytes) -> str:
    try:
        text = str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        text = body.decode("utf-8", "replace")
    return f"the service answered {status}: {' '.join(text.split())[:_EXCERPT]}"
