"""`python -m lean.costs.paced`: a service with no model behind it, whose tokens come at an exact pace.

A measuring client against it measures itself: the service takes next to no processor time, every token is due
at a time fixed when the request came, and one that was late makes none after it later. The API is the part of
OpenAI's that measuring clients use, with vLLM's `token_ids`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tokenizers import Tokenizer

from lean.bench.prompt import open_tokenizer
from lean.cli import ProgramParser, run_program
from lean.leanserve.listener import ReadyFile, bind, listen

MODEL = "paced"
WORD, WORD_ID = " x", 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds to the first token, and from each to the next."""

    first_s: float
    token_s: float

    def due(self, number: int) -> float:
        """When a token comes, in seconds since its request; the first is number 0."""
        return self.first_s + number * self.token_s


def paced_app(pace: Pace, tokenizer: Tokenizer) -> Starlette:
    """The service; `tokenizer` counts the prompts."""

    async def completions(request: Request) -> Response:
        arrived, body = time.perf_counter(), json.loads(await request.body())
        prompt = body["prompt"]
        count = len(prompt) if isinstance(prompt, list) else _count(tokenizer, prompt)
        return _answer(_Call(body, count, chat=False), pace, arrived)

    async def chat(request: Request) -> Response:
        arrived, body = time.perf_counter(), json.loads(await request.body())
        text = "\n".join(str(message["content"]) for message in body["messages"])
        return _answer(_Call(body, _count(tokenizer, text), chat=True), pace, arrived)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ready"})

    return Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
        ]
    )


class _Call:
    """One request: how many tokens are wanted, and the documents of its answer."""

    def __init__(self, body: dict[str, Any], prompt_tokens: int, *, chat: bool) -> None:
        self.tokens = int(body.get("max_tokens") or 16)
        self.stream = bool(body.get("stream"))
        self._ids = bool(body.get("return_token_ids"))
        self._usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self._chat = chat
        self._counts = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": prompt_tokens + self.tokens,
        }

    def whole(self) -> dict[str, Any]:
        """The answer in one document."""
        text = WORD * self.tokens
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        kind = "chat.completion" if self._chat else "text_completion"
        choice = {"index": 0, "finish_reason": "length", **said}
        return _document(kind, [choice]) | {"usage": self._counts}

    def chunk(self, number: int) -> dict[str, Any]:
        """The document of one token."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        choice |= {"delta": {"role": "assistant", "content": WORD}} if self._chat else {"text": WORD}
        choice |= {"finish_reason": "length"} if number + 1 == self.tokens else {}
        choice |= {"token_ids": [WORD_ID]} if self._ids else {}
        return _document("chat.completion.chunk" if self._chat else "text_completion", [choice])

    def last(self) -> dict[str, Any] | None:
        """The counts, where they were asked for."""
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return _document(kind, []) | {"usage": self._counts} if self._usage else None


def _document(kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": "paced-0", "object": kind, "created": 0, "model": MODEL, "choices": choices}


def _answer(call: _Call, pace: Pace, arrived: float) -> Response:
    if call.stream:
        return StreamingResponse(_events(call, pace, arrived), media_type="text/event-stream")
    return JSONResponse(call.whole())


def _events(call: _Call, pace: Pace, arrived: float) -> Iterator[bytes]:
    """In a thread, whose sleep is exact to a tenth of a millisecond; an event loop's rounds to whole ones."""
    for number in range(call.tokens):
        event = b"data: " + json.dumps(call.chunk(number)).encode() + b"\n\n"
        time.sleep(max(0.0, arrived + pace.due(number) - time.perf_counter()))
        yield event
    if (last := call.last()) is not None:
        yield b"data: " + json.dumps(last).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def main(argv: list[str]) -> dict[str, Any]:
    """Serve on a free port of 127.0.0.1 until SIGTERM."""
    parser = ProgramParser(prog="python -m lean.costs.paced", description="Tokens at an exact pace.")
    parser.add_argument("--tokenizer", required=True, type=Path, help="a folder with tokenizer.json")
    parser.add_argument("--ready-file", required=True, type=Path)
    parser.add_argument("--first-ms", type=float, required=True, help="to the first token")
    parser.add_argument("--token-ms", type=float, required=True, help="from each token to the next")
    options = parser.parse_args(argv)
    pace = Pace(first_s=options.first_ms / 1e3, token_s=options.token_ms / 1e3)
    listener = bind(0, send_seconds=60.0)
    port = listen(listener)
    app = paced_app(pace, open_tokenizer(options.tokenizer))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none"))
    ready = ReadyFile(options.ready_file)
    ready.write({"url": f"http://127.0.0.1:{port}", "model": MODEL})
    try:
        server.run(sockets=[listener])
    finally:
        ready.clear()
    return {"port": port}


if __name__ == "__main__":
    sys.exit(run_program(main))
