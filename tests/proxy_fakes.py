"""An engine that follows a script and writes down what it was asked and when it said what."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

MOMENT = 0.02


@dataclass
class Asked:
    """One request as it came. `said`: when each piece of the answer was sent; `left`: its client went."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    came: float
    said: list[float] = field(default_factory=list)
    left: bool = False

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


@dataclass
class ScriptedEngine:
    """`url` and what it was asked. Its answers: `tokens` one by one, or as the other fields say."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    gap_s: float = 0.0
    cut_at: int | None = None  # bytes of a piece, whatever an event is
    hold_head: bool = False  # no answer at all before `go`
    hold_after: int | None = None  # pieces, then nothing more before `go`
    break_after: int | None = None  # pieces, then the connection breaks
    flood: bool = False  # half a gigabyte in pieces of 64 KiB
    status: int = 200
    go: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        """Behave, and forget."""
        url = self.url
        self.__init__(url=url)  # type: ignore[misc]


def answer_of(document: dict[str, Any]) -> list[bytes]:
    """The events of a streamed completion."""
    count = document.get("max_tokens", 16)
    events = []
    for number in range(count):
        finish = "length" if number == count - 1 else None
        choice = {"index": 0, "text": f"wörd{number} ", "finish_reason": finish, "token_ids": [number]}
        events.append({"choices": [choice]})
    usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
    lines = [json.dumps(event, ensure_ascii=False) for event in [*events, {"choices": [], "usage": usage}]]
    return [f"data: {line}\n\n".encode() for line in [*lines, "[DONE]"]]


def events_of(raw: bytes) -> list[Any]:
    """The data of a stream that is whole."""
    lines = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines[-1:]
    return [json.loads(line) for line in lines[:-1]]


def _app(engine: ScriptedEngine) -> ASGIApp:
    async def held() -> None:
        while not engine.go.is_set():
            await asyncio.sleep(MOMENT / 4)

    async def pieces(asked: Asked) -> AsyncIterator[bytes]:
        chunks = [bytes(1 << 16)] * (1 << 13) if engine.flood else answer_of(asked.document)
        if engine.cut_at is not None:
            whole = b"".join(chunks)
            chunks = [whole[i : i + engine.cut_at] for i in range(0, len(whole), engine.cut_at)]
        try:
            for number, chunk in enumerate(chunks):
                if number == engine.hold_after:
                    await held()
                if number == engine.break_after:
                    raise ConnectionAbortedError("as the script says")
                await asyncio.sleep(engine.gap_s)
                asked.said.append(time.monotonic())
                yield chunk
        except asyncio.CancelledError:
            asked.left = True
            raise

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        asked = Asked(scope["method"], target.decode(), scope["headers"], b"", time.monotonic())
        engine.asked.append(asked)
        asked.body = await request.body()
        if engine.hold_head:
            while not engine.go.is_set():
                if await request.is_disconnected():
                    asked.left = True
                    return
                await asyncio.sleep(MOMENT / 4)
        await (await answer(asked, scope["path"]))(scope, receive, send)

    async def answer(asked: Asked, path: str) -> Response:
        if path != "/v1/completions" or engine.status != 200:
            return JSONResponse({"path": path}, engine.status, {"X-Engine": "scripted"})
        document = asked.document
        if document.get("stream"):
            return StreamingResponse(pieces(asked), media_type="text/event-stream")
        await asyncio.sleep(engine.gap_s)
        count = document["max_tokens"]
        asked.said.append(time.monotonic())
        choice = {"text": "x" * count, "finish_reason": "length"}
        return JSONResponse({"choices": [choice], "usage": {"completion_tokens": count}})

    return app


@contextmanager
def scripted_engine() -> Iterator[ScriptedEngine]:
    """It answers on a free loopback port until the block ends."""
    engine = ScriptedEngine()
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    engine.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        _app(engine), log_config=None, log_level=100, lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield engine
    finally:
        engine.go.set()
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
