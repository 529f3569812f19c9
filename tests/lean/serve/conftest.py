"""A scripted runner, an engine over it, and the real application over it on a real socket."""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from lean.leanserve.engine import Engine, EngineSettings
from lean.leanserve.http.app import HttpLimits, Identity, Service, build_app
from lean.leanserve.http.follow import Bridge
from lean.leanserve.http.server import Server, server_for
from lean.leanserve.listener import bind, listen
from lean.leanserve.region_times import RegionLog
from lean.leanserve.request import Event, Failed, Generated, GenerationRequest
from lean.leanserve.runner import Choice, Cursor, Piece, RunnerFacts, Sampling
from lean.leanserve.stats import ServiceStats
from lean.leanserve.stream import Stream
from lean.leanserve.tokenizer import PackTokenizer

TOKEN = "a-token-for-the-tests"
EOS = 256
VOCAB = 259  # 256 bytes, <|endoftext|>, <|im_start|>, <|im_end|>
DEADLINE = 10.0


class ScriptedRunner:
    """Token i is byte i.

    A stream's tokens come from `script` by prompt, else from a hash of everything before them.

    The hash covers the bucket too, as rounding does on a real device, so an engine that changes a bucket
    under a stream, mixes up slots or loses a token shows. `permits` None: run freely; else every decode step
    takes one.
    """

    def __init__(
        self,
        *,
        slots: int = 4,
        max_length: int = 512,
        prefill_tile: int = 16,
        prefill_grain: int = 64,
        script: dict[bytes, Sequence[int]] | None = None,
        manual: bool = False,
        fail_decode_at: int | None = None,
        fail_prefill: bytes | None = None,
    ) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.together: list[tuple[int, ...]] = []  # the slots of each call of `prefill`
        self.threads: set[int] = set()
        self.permits = threading.Semaphore(0) if manual else None
        self._script = {tuple(prompt): list(tokens) for prompt, tokens in (script or {}).items()}
        self._fail_decode_at, self._fail_prefill = fail_decode_at, fail_prefill
        self._tokens: dict[int, list[int]] = {slot: [] for slot in range(slots)}
        self._prompts: dict[int, tuple[int, ...]] = {}
        self._samplings: dict[int, Sampling] = {}
        self._decodes = 0
        self.facts = RunnerFacts(
            name="scripted",
            device="none",
            compute_dtype="none",
            slots=slots,
            buckets=tuple(size for size in (1, 2, 4, 8) if size <= slots),
            max_length=max_length,
            vocab=VOCAB,
            prefill_tile=prefill_tile,
            prefill_grain=prefill_grain,
            threads=1,
            operator_coverage=0.0,
            load_seconds=0.0,
        )

    def time_regions(self, log: RegionLog | None) -> None:
        self._note("time", log is not None)

    def prefill(self, pieces: Sequence[Piece]) -> list[Choice | None]:
        self.together.append(tuple(piece.slot for piece in pieces))
        assert len(set(self.together[-1])) == len(pieces) > 0
        return [self._prefill_one(piece.slot, piece.tokens, piece.sampling) for piece in pieces]

    def _prefill_one(self, slot: int, tokens: Sequence[int], sampling: Sampling | None) -> Choice | None:
        self._note("prefill", slot, len(tokens), sampling is not None)
        if self._fail_prefill is not None and tuple(self._fail_prefill) == tuple(tokens):
            raise RuntimeError("the device fell off the bus")
        self._tokens[slot] += tokens
        if sampling is None:
            return None
        self._prompts[slot], self._samplings[slot] = tuple(self._tokens[slot]), sampling
        return self._choose(slot, 0)

    def decode(self, bucket: int, steps: int) -> list[dict[int, Choice]]:
        assert bucket in self.facts.buckets
        armed = [slot for slot in sorted(self._prompts) if slot < bucket]
        self._note("decode", bucket, tuple(armed))
        if self.permits is not None and self._decodes and not self.permits.acquire(timeout=DEADLINE):
            raise RuntimeError("the test allowed no further step")
        self._decodes += 1  # the first one is the engine's own at start-up
        if self._fail_decode_at is not None and self._decodes > self._fail_decode_at:
            raise RuntimeError("the device fell off the bus")
        return [{slot: self._choose(slot, bucket) for slot in armed} for _ in range(steps)]

    def release(self, slot: int) -> None:
        self._note("release", slot)
        self._tokens[slot] = []
        self._prompts.pop(slot, None)

    def snapshot(self, slot: int) -> Cursor:
        raise NotImplementedError

    def restore(self, slot: int, cursor: Cursor) -> None:
        raise NotImplementedError

    def allow(self, steps: int) -> None:
        """Let this many decode steps run."""
        assert self.permits is not None
        self.permits.release(steps)

    def await_call(self, *call: Any) -> None:
        """Wait until the runner's latest call begins with this."""
        deadline = time.monotonic() + DEADLINE
        while self.calls[-1][: len(call)] != call:
            assert time.monotonic() < deadline, f"expected {call}, at {self.calls[-1]}"
            time.sleep(0.001)

    def buckets_used(self) -> list[int]:
        """The bucket of every decode step after the engine's own."""
        return [call[1] for call in self.calls if call[0] == "decode"][1:]

    def _note(self, *call: Any) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append(call)

    def _choose(self, slot: int, bucket: int) -> Choice:
        tokens, sampling = self._tokens[slot], self._samplings[slot]
        done = len(tokens) - len(self._prompts[slot])
        script = self._script.get(self._prompts[slot])
        if script is not None:
            token = script[done % len(script)]
        else:
            seen = repr((tokens, sampling.seed, bucket)).encode()
            token = 0x20 + hashlib.sha256(seen).digest()[0] % 0x5F
        if token in sampling.suppress and done < sampling.suppress_steps:
            token = ord("~")
        tokens.append(token)
        if sampling.top_logprobs is None:
            return Choice(token=token)
        top = tuple(((token + i) % VOCAB, -0.5 - i) for i in range(sampling.top_logprobs))
        return Choice(token=token, logprob=-0.5, top=top)


def token_bytes(token: int) -> bytes:
    """Bytes of a scripted token."""
    return bytes([token]) if token < 256 else b""


@dataclass
class Sink:
    """What one stream brought, for a test that waits for it."""

    events: queue.Queue[Event] = field(default_factory=queue.Queue)

    def next(self) -> Event:
        return self.events.get(timeout=DEADLINE)

    def all(self) -> list[Generated]:
        """Every token up to the last one; fails when the stream failed."""
        found: list[Generated] = []
        while not found or found[-1].finish is None:
            event = self.next()
            assert isinstance(event, Generated), event
            found.append(event)
        return found

    def failure(self) -> Failed:
        """The failure that ends the stream."""
        while not isinstance(event := self.next(), Failed):
            assert event.finish is None
        return event

    def text(self) -> str:
        return "".join(event.text for event in self.all())


class EngineUnderTest(Engine):
    """An engine with the scripted runner, and short words for tests."""

    runner: ScriptedRunner

    def ask(self, prompt: bytes, *, max_tokens: int = 8, **fields: Any) -> tuple[Stream, Sink]:
        sink = Sink()
        sampling = fields.pop("sampling", Sampling())
        request = GenerationRequest(prompt=tuple(prompt), sampling=sampling, max_tokens=max_tokens, **fields)
        return self.submit(request, sink.events.put), sink


@pytest.fixture
def new_engine() -> Iterator[Callable[..., EngineUnderTest]]:
    """`new_engine(runner, **settings)`: a started engine, stopped at the end of the test."""
    engines: list[EngineUnderTest] = []

    def start(runner: ScriptedRunner, **settings: Any) -> EngineUnderTest:
        engine = EngineUnderTest(
            lambda: runner, token_bytes=token_bytes, settings=EngineSettings(**settings), stats=ServiceStats()
        )
        engine.runner = runner
        engines.append(engine)
        engine.start()
        engine.ready.result(timeout=DEADLINE)
        return engine

    yield start
    for engine in engines:
        if engine.runner.permits is not None:
            engine.runner.allow(10_000)
        engine.stop()


@pytest.fixture
def scripted() -> type[ScriptedRunner]:
    """The scripted runner."""
    return ScriptedRunner


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder in which token i is byte i, then the three special tokens of ChatML."""
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = {chr(b): b for b in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]}
    rest = (b for b in range(256) if b not in alphabet.values())
    alphabet |= {chr(0x100 + i): b for i, b in enumerate(list(rest))}
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder


@dataclass
class LiveService:
    """The application on a real socket."""

    port: int
    runner: ScriptedRunner
    engine: Engine
    service: Service
    server: Server
    client: httpx.Client

    def post(self, path: str, **body: Any) -> httpx.Response:
        """A JSON request to the model."""
        return self.client.post(path, json={"model": "tiny", **body})

    def complete(self, prompt: Any = "hello", **body: Any) -> httpx.Response:
        """A completion."""
        return self.post("/v1/completions", prompt=prompt, **body)

    def connect(self) -> socket.socket:
        """A raw connection with a deadline."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)

    def head(self, path: str, *extra: str, method: str = "POST") -> bytes:
        """An authorized request head, up to and with the empty line."""
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            f"Authorization: Bearer {TOKEN}",
        ]
        return "\r\n".join([*lines, *extra, "", ""]).encode()


@contextmanager
def live_service(
    folder: Path,
    runner: ScriptedRunner,
    *,
    wait: bool,
    send_seconds: float,
    limits: HttpLimits,
    **settings: Any,
) -> Iterator[LiveService]:
    """Run the application in a thread with its own loop."""
    tokenizer, stats, bridge = PackTokenizer(folder, vocab=4096), ServiceStats(), Bridge()
    engine = Engine(
        lambda: runner, token_bytes=tokenizer.token_bytes, settings=EngineSettings(**settings), stats=stats
    )
    identity = Identity(model="tiny", contract="tiny-contract", lock="ab" * 32, runner="scripted", started=1)
    service = Service(
        engine=engine, bridge=bridge, tokenizer=tokenizer, identity=identity, stats=stats, limits=limits
    )
    server = server_for(build_app(service, TOKEN.encode()))
    listener = bind(0, send_seconds=send_seconds)
    port = listen(listener)

    async def run() -> None:
        bridge.attach()
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    if wait:
        engine.start()
        engine.ready.result(timeout=DEADLINE)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=DEADLINE) as client:
            yield LiveService(
                port=port, runner=runner, engine=engine, service=service, server=server, client=client
            )
    finally:
        if runner.permits is not None:
            runner.allow(10_000)
        if engine.ready.done() or wait:
            engine.stop()
        server.should_exit = True
        thread.join(DEADLINE)
        assert not thread.is_alive()


@pytest.fixture
def new_service(byte_tokenizer: Path) -> Iterator[Callable[..., LiveService]]:
    """`new_service(runner, **settings)`: the application on a socket, gone at the end of the test."""
    with ExitStack() as stack:

        def start(
            runner: ScriptedRunner | None = None,
            *,
            wait: bool = True,
            send_seconds: float = 60.0,
            limits: HttpLimits | None = None,
            **settings: Any,
        ) -> LiveService:
            context = live_service(
                byte_tokenizer,
                runner or ScriptedRunner(),
                wait=wait,
                send_seconds=send_seconds,
                limits=limits or HttpLimits(),
                **settings,
            )
            return stack.enter_context(context)

        yield start


@pytest.fixture
def service(new_service: Callable[..., LiveService]) -> LiveService:
    """A free-running service."""
    return new_service()


@pytest.fixture(scope="module")
def shared_service(byte_tokenizer: Path) -> Iterator[LiveService]:
    """A free-running service for a whole module."""
    runner = ScriptedRunner()
    with live_service(byte_tokenizer, runner, wait=True, send_seconds=60.0, limits=HttpLimits()) as service:
        yield service
