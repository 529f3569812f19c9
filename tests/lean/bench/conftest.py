"""A small OpenAI-shaped service that follows a script, misbehaving on demand, and records made by hand."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lean.bench import store
from lean.bench.__main__ import main
from lean.bench.fairness import judge_fairness
from lean.bench.metrics import run_metrics
from lean.bench.record import Backend, PackFacts, Release, RunRecord, run_id
from lean.bench.sample import Sample
from lean.cli import run_program
from lean.contracts import BenchProfile, contract_sha256, load_contract
from lean.in_process import InProcess, KernelSpeed, ReadBandwidth, Round
from lean.leanpack import open_pack
from lean.leanpack.build import BuildRequest, build_pack

TOKEN = "canary-bearer-token"


@dataclass
class Script:
    """What the service does with the next requests. Defaults behave."""

    per_event: tuple[int, ...] = (1,)  # tokens per streamed chunk, cycled
    prompt_tokens_off: int = 0
    completion_tokens_off: int = 0
    tokens_off: int = 0
    usage: bool = True
    running_usage: bool = False
    token_ids: bool = True
    finish_reason: str | None = "length"
    cut_after: int | None = None  # events, then the connection breaks
    silent_end_after: int | None = None  # events, then a clean end without [DONE]
    hang_after: int | None = None  # events, then nothing more
    raw_event: bytes | None = None  # sent first, as it is
    status: int = 200
    refuse_every: int | None = None  # of the requests so far, each so-many-th gets a 429
    forever: bool = False  # an answer that never ends
    health: int = 200
    gap_s: float = 0.0005
    bodies: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class ScriptedService:
    url: str
    script: Script


class _Cut(Exception):
    """Breaks the connection in the middle of a chunked answer."""


def _events(script: Script, body: dict[str, Any]) -> Iterator[bytes]:
    prompt = body["prompt"]
    prompt_tokens = len(prompt) if isinstance(prompt, list) else len(prompt.split())
    total = 1 << 40 if script.forever else body["max_tokens"] + script.tokens_off
    sent = 0
    turn = 0
    while sent < total:
        count = min(script.per_event[turn % len(script.per_event)], total - sent)
        turn += 1
        sent += count
        choice: dict[str, Any] = {"index": 0, "text": "x" * count, "finish_reason": None}
        if script.token_ids:
            choice["token_ids"] = [7] * count
        if sent == total:
            choice["finish_reason"] = script.finish_reason
        event: dict[str, Any] = {"choices": [choice]}
        if script.running_usage:
            event["usage"] = {"prompt_tokens": prompt_tokens, "completion_tokens": sent}
        yield json.dumps(event).encode()
    if script.usage:
        usage = {
            "prompt_tokens": prompt_tokens + script.prompt_tokens_off,
            "completion_tokens": total + script.completion_tokens_off,
        }
        yield json.dumps({"choices": [], "usage": usage}).encode()


def _app(script: Script, stopping: threading.Event) -> Starlette:
    async def stream(body: dict[str, Any]) -> AsyncIterator[bytes]:
        if script.raw_event is not None:
            yield script.raw_event
        for number, event in enumerate(_events(script, body)):
            if number == script.silent_end_after:
                return
            if number == script.cut_after:
                raise _Cut
            while number == script.hang_after and not stopping.is_set():
                await asyncio.sleep(0.02)
            yield b"data: " + event + b"\n\n"
            await asyncio.sleep(script.gap_s)
        yield b"data: [DONE]\n\n"

    async def completions(request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"error": {"message": "no or wrong bearer token"}}, 401)
        body = json.loads(await request.body())
        script.bodies.append(body)
        if script.refuse_every and len(script.bodies) % script.refuse_every == 0:
            return JSONResponse({"error": {"message": "all slots are taken"}}, 429, {"Retry-After": "1"})
        if script.status != 200:
            return JSONResponse({"error": {"message": "the model fell over"}}, script.status)
        return StreamingResponse(stream(body), media_type="text/event-stream")

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "loading" if script.health != 200 else "ready"}, script.health)

    async def listed(_: Request) -> Response:
        return JSONResponse({"data": [{"id": "scripted"}]})

    routes = [Route("/health", health), Route("/v1/models", listed)]
    return Starlette(routes=[*routes, Route("/v1/completions", completions, methods=["POST"])])


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    """The scripted service on a free loopback port, stopped with its thread afterwards."""
    script, stopping = Script(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        _app(script, stopping), log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield ScriptedService(url=f"http://127.0.0.1:{listener.getsockname()[1]}", script=script)
    finally:
        stopping.set()
        server.should_exit = True
        thread.join(10)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(TOKEN + "\n")
    return file


@pytest.fixture
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records without their picture, for tests that write many and look at none."""
    monkeypatch.setattr(store, "draw_plot", lambda *_: False)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-level BPE with a few hundred merges, trained here in a moment."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(
        ["the water in the lake and the boats on the water and the bread " * 5], trainer
    )
    return tokenizer


PROFILE = BenchProfile(
    id="decode_8_16", prompt_tokens=8, decode_tokens=16, batch=2, warmup_requests=1, requests=3, seed=7
)
RELEASE = Release(id="r1", git_sha="0123456789abcdef0123456789abcdef01234567", dirty=False, diff_sha256=None)
STARTED = "2026-02-03T04:05:06.789+00:00"


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    """A sample that keeps every rule of PROFILE; 16 tokens, 10 ms to the first, 2 ms between."""

    def make(**changes: Any) -> Sample:
        stream, turn = changes.get("stream", 0), changes.get("round", 0)
        phase = changes.get("phase", "measured")
        start = turn * 100_000_000
        good: dict[str, Any] = {
            "phase": phase,
            "stream": stream,
            "round": turn,
            "prompt_sha256": f"{phase}-{stream}-{turn}",
            "prompt_tokens": 8,
            "max_new_tokens": 16,
            "temperature": 0.0,
            "ignore_eos": True,
            "started_utc": STARTED,
            "sent_ns": start,
            "first_byte_ns": start + 10_000_000,
            "event_ns": tuple(start + 10_000_000 + 2_000_000 * i for i in range(16)),
            "event_tokens": (1,) * 16,
            "end_ns": start + 41_000_000,
            "http_status": 200,
            "usage_prompt_tokens": 8,
            "usage_completion_tokens": 16,
            "finish_reason": "length",
            "token_ids_sha256": "ab" * 32,
            "text_excerpt": "quiet water",
            "finished": True,
            "error": None,
        }
        return Sample(**(good | changes))

    return make


@pytest.fixture
def fair_samples(make_sample: Callable[..., Sample]) -> tuple[Sample, ...]:
    """All samples of a fair run of PROFILE, the warm-up first."""
    warm = tuple(make_sample(phase="warmup", stream=stream) for stream in range(2))
    return warm + tuple(make_sample(stream=stream, round=turn) for turn in range(3) for stream in range(2))


@pytest.fixture
def make_in_process() -> Callable[..., InProcess]:
    """What `leanserve measure` found for PROFILE on a chip; `dataclasses.replace` semantics for changes."""

    def make(**changes: Any) -> InProcess:
        kernel = KernelSpeed(
            kernel="gate_up.one",
            launches=4,
            read_bytes=3_000_000,
            replays=32,
            swept=True,
            seconds=(2e-6, 2e-6, 2e-6),
            step_s=2e-6,
            gbs=1500.0,
            share=0.5,
        )
        choice = dataclasses.replace(
            kernel, kernel="greedy.rows", launches=1, read_bytes=0, swept=False, gbs=None, share=None
        )
        found = InProcess(
            started_utc=STARTED,
            contract="tiny-cpu",
            lock="c0" * 32,
            weights="demo",
            profile=PROFILE,
            runner={"name": "torch", "device": "cpu", "compute_dtype": "float32", "slots": 2},
            rounds=(Round(first_token_s=0.01, step_s=(0.002,) * 15, total_s=0.05, tokens=32),),
            tokens_per_second=1000.0,
            first_token_ms=8.0,
            step_ms=1.6,
            read_bandwidth=ReadBandwidth(
                read_bytes=8 << 30, launches=39, replays=12, seconds=(0.0028, 0.0029), gbs=3000.0
            ),
            kernels=(kernel, choice),
            release="r",
            host="0123456789ab",
            finished_utc=STARTED,
        )
        return dataclasses.replace(found, **changes)

    return make


@pytest.fixture
def make_record(fair_samples: tuple[Sample, ...]) -> Callable[..., RunRecord]:
    """A valid record of a fair run on tiny-cpu; `dataclasses.replace` semantics for changes."""

    def make(**changes: Any) -> RunRecord:
        contract = changes.get("contract", load_contract("tiny-cpu"))
        release = changes.get("release", RELEASE)
        record = RunRecord(
            id=run_id(STARTED, release),
            host="loopback",
            status="ok",
            failure=None,
            label="exploratory",
            label_reasons=("contract tiny-cpu is not official",),
            started_utc=STARTED,
            finished_utc="2026-02-03T04:05:09.000+00:00",
            contract=contract,
            contract_sha256=contract_sha256(contract),
            profile=PROFILE,
            overridden=(),
            release=release,
            pack=PackFacts(
                lock="c0" * 32,
                lock_verified=True,
                contract_sha256=contract_sha256(contract),
                weights="demo",
                source_id="leanstack/demo-5m",
                source_revision=None,
                source_matches=False,
            ),
            backend=Backend(name="torch", device="cpu", compute_dtype="float32", operator_coverage=0.0),
            service={"pid": 1, "nested": {"list": [1, None, 2.5]}},
            host_facts={"machine": "x86_64"},
            state_before=None,
            state_after=None,
            throttled=(),
            notes=(),
            fairness=judge_fairness(contract, PROFILE, fair_samples),
            metrics=run_metrics(contract, PROFILE, fair_samples),
            command=("python", "-m", "lean.bench", "run"),
            prompts=(),
            samples=fair_samples,
        )
        return dataclasses.replace(record, **changes)

    return make


# --- whole runs from the command line

ROOT = Path(__file__).resolve().parents[3]
SHA = "89abcdef0123456789abcdef0123456789abcdef"
RUNNER = {"name": "scripted", "device": "cpu", "compute_dtype": "float32", "slots": 1}


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint as a pack."""
    request = BuildRequest(
        model=ROOT / "lean/demo/checkpoint",
        contract=load_contract("tiny-cpu"),
        packs=tmp_path_factory.mktemp("packs"),
        encoding="bf16",
        target="cpu",
    )
    return Path(build_pack(request).path)


@dataclasses.dataclass
class Bench:
    """The command line of a run that goes well, and the places it names."""

    arguments: dict[str, str]
    results: Path
    ready: Path

    def argv(self, **changes: str) -> list[str]:
        words = ["run"]
        for name, value in (self.arguments | changes).items():
            words += [f"--{name.replace('_', '-')}", value]
        return words

    def run(self, capsys: pytest.CaptureFixture[str], **changes: str) -> tuple[int, dict[str, Any]]:
        code = run_program(main, self.argv(**changes))
        return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def bench(tmp_path: Path, service: Any, token_file: Path, pack: Path, no_plot: None) -> Bench:
    service.script.gap_s = 0
    ready = tmp_path / "ready.json"
    served = {"lock": open_pack(pack).lock, "runner": RUNNER | {"operator_coverage": 0.5}}
    ready.write_text(json.dumps(served | {"started_utc": "2026-01-02T10:00:09.000+00:00"}))
    release = tmp_path / "release.json"
    release.write_text(
        json.dumps({"id": "r", "git_sha": SHA, "dirty": True, "diff_sha256": "ee" * 32, "files": {}})
    )
    results = tmp_path / "results"
    arguments = {
        "url": service.url,
        "token_file": str(token_file),
        "profile": "prefill_1024_64",
        "contract": "tiny-cpu",
        "pack": str(pack),
        "service": str(ready),
        "release": str(release),
        "host_name": "loopback",
        "results": str(results),
        "read_timeout": "5",
    }
    return Bench(arguments=arguments, results=results, ready=ready)
