"""Our measuring client beside llama-benchy, in turn against the same running service.

Both say decode tokens/s as tokens after the first over the time from the first to the last, and TTFT from
the request's sending to the first token, so a ratio other than 1 is a fault of one of them or noise. They are
not the same request: llama-benchy asks for a chat and so sends a template around its prompt; ours sends
exactly as many tokens as it is told. A client also takes processor time, which a real service on the same
cores misses; against a service whose tokens come at a set pace that plays no part, and what differs then is
how the two read the clock and count.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lean.bearer import read_token
from lean.bench.client import ClientSettings, CompletionClient, CompletionRequest, clock_since_now
from lean.bench.metrics import RequestMetrics, request_metrics
from lean.bench.prompt import Prompt, exact_prompt, open_tokenizer
from lean.costs.book import serve_book
from lean.costs.service import Running, paced_service, running_service
from lean.errors import InvalidRunError, PreflightError
from lean.leanpack import open_pack

PROCESS_S = 600.0
RUNS = 3  # requests of each client in a round
FIRST_MS = 50.0  # to the first token of the service that keeps a pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Of every request, in the order they were made."""

    decode_tokens_per_s: tuple[float, ...]
    ttft_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientsCost:
    """Both clients' samples. `peer`: its name and version. `pace_ms`: of a paced service, a token.

    A ratio is ours over theirs, median over median of one round, whose requests are near each other in time;
    `decode_ratio` and `ttft_ratio` are the medians of the rounds' ratios.
    """

    peer: str
    prompt: int
    new: int
    threads: int
    ours: Speeds
    theirs: Speeds
    decode_ratios: tuple[float, ...]
    ttft_ratios: tuple[float, ...]
    decode_ratio: float
    ttft_ratio: float
    pace_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    ours: Speeds
    theirs: Speeds


def clients_cost(
    pack: Path,
    benchy: Path,
    *,
    rounds: int,
    threads: int,
    prompt: int,
    new: int,
    pace_ms: float | None = None,
) -> ClientsCost:
    """Measure `rounds` times with each client, each first in turn, after a round that does not count.

    With `pace_ms` the service has no model; of the pack it has the tokenizer alone.

    Errors: `NotReadyError` when the service does not start, `PreflightError` when llama-benchy cannot run,
    `InvalidRunError` when a request fails.
    """
    if not benchy.exists():
        raise PreflightError(f"{benchy}: there is no such program; name llama-benchy's")
    folder = open_pack(pack).tokenizer_dir
    tokenizer = open_tokenizer(folder)
    found: list[_Round] = []
    version = ""
    serving = (
        running_service(pack, threads)
        if pace_ms is None
        else paced_service(folder, first_ms=FIRST_MS, token_ms=pace_ms)
    )
    with serving as service, serve_book() as book:
        for turn in range(rounds + 1):
            prompts = [exact_prompt(tokenizer, prompt, f"clients/{turn}/{i}") for i in range(RUNS)]
            before = None if turn % 2 else asyncio.run(_ours(service, prompts, new))
            theirs, version = _theirs(benchy, service, pack, book, prompt, new)
            found.append(_Round(ours=before or asyncio.run(_ours(service, prompts, new)), theirs=theirs))
    peer = f"llama-benchy {version}"
    return _cost(found[1:], peer=peer, prompt=prompt, new=new, threads=threads, pace_ms=pace_ms)


def _cost(
    rounds: list[_Round], *, peer: str, prompt: int, new: int, threads: int, pace_ms: float | None
) -> ClientsCost:
    decode = tuple(median(r.ours.decode_tokens_per_s) / median(r.theirs.decode_tokens_per_s) for r in rounds)
    ttft = tuple(median(r.ours.ttft_s) / median(r.theirs.ttft_s) for r in rounds)
    return ClientsCost(
        peer=peer,
        prompt=prompt,
        new=new,
        threads=threads,
        ours=_joined([r.ours for r in rounds]),
        theirs=_joined([r.theirs for r in rounds]),
        decode_ratios=decode,
        ttft_ratios=ttft,
        decode_ratio=median(decode),
        ttft_ratio=median(ttft),
        pace_ms=pace_ms,
    )


def _joined(speeds: list[Speeds]) -> Speeds:
    return Speeds(
        decode_tokens_per_s=tuple(value for one in speeds for value in one.decode_tokens_per_s),
        ttft_s=tuple(value for one in speeds for value in one.ttft_s),
    )


async def _ours(service: Running, prompts: list[Prompt], new: int) -> Speeds:
    token = read_token(service.token_file).decode()
    async with CompletionClient(service.ready["url"], token, ClientSettings(), clock_since_now()) as client:
        model = await client.model()
        found: list[RequestMetrics] = []
        for turn, prompt in enumerate(prompts):
            request = CompletionRequest(
                model=model,
                prompt=prompt,
                prompt_form="ids",
                max_new_tokens=new,
                phase="measured",
                stream=0,
                round=turn,
            )
            sample = await client.complete(request)
            metrics = request_metrics(sample)
            if metrics is None:
                raise InvalidRunError(f"our client: {sample.error or 'an answer without tokens'}")
            found.append(metrics)
    return Speeds(
        decode_tokens_per_s=tuple(metrics.decode_tokens_per_s for metrics in found),
        ttft_s=tuple(metrics.ttft_s for metrics in found),
    )


def _theirs(
    benchy: Path, service: Running, pack: Path, book: str, prompt: int, new: int
) -> tuple[Speeds, str]:
    """What llama-benchy measures, and its version. It sees nothing of ours and asks no hub."""
    with tempfile.TemporaryDirectory() as home:
        result = Path(home, "result.json")
        argv = [str(benchy), "--base-url", f"{service.ready['url']}/v1", "--model", service.ready["model"]]
        # It takes a token on its command line only; this one ends with the measurement.
        argv += ["--api-key", read_token(service.token_file).decode()]
        argv += ["--tokenizer", str(open_pack(pack).tokenizer_dir), "--book-url", book, "--exact-tg"]
        argv += ["--pp", str(prompt), "--tg", str(new), "--runs", str(RUNS), "--concurrency", "1"]
        argv += ["--no-cache", "--latency-mode", "none", "--skip-coherence", "--exit-on-first-fail"]
        argv += ["--format", "json", "--save-result", str(result)]
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            argv,
            env=alone | {"HOME": home, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=PROCESS_S,
        )
        if done.returncode != 0 or not result.exists():
            raise PreflightError(f"{benchy} failed: {(done.stderr or done.stdout).strip()[-300:]}")
        document = json.loads(result.read_text())
    speeds = Speeds(
        decode_tokens_per_s=_values(document, "tg_throughput"),
        ttft_s=tuple(value / 1e3 for value in _values(document, "e2e_ttft")),
    )
    return speeds, str(document["version"])


def _values(document: dict[str, Any], name: str) -> tuple[float, ...]:
    """Every sample of one of its figures. Errors: `InvalidRunError` when it has not one for each request."""
    (run,) = document["benchmarks"]
    values = tuple(float(value) for value in (run[name] or {}).get("values", ()))
    if len(values) != RUNS:
        raise InvalidRunError(f"llama-benchy says {name} of {len(values)} requests, {RUNS} were asked for")
    return values
