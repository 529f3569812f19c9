"""A bench profile's traffic without HTTP: the runner alone, the ceiling of what the service reaches."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from statistics import median
from time import perf_counter

from lean.contracts import BenchProfile, to_data
from lean.in_process import InProcess, Round
from lean.leanserve.runner import Piece, Runner, Sampling


def measure(runner: Runner, profile: BenchProfile, *, contract: str, lock: str, weights: str) -> InProcess:
    """Run the profile's warm-up and requests on the runner's first slots: greedy, random prompts."""
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    draw = random.Random(profile.seed)
    vocab = runner.facts.vocab
    bucket = min(size for size in runner.facts.buckets if size >= profile.batch)
    rounds = []
    for turn in range(profile.warmup_requests + profile.requests):
        prompts = [
            [draw.randrange(vocab) for _ in range(profile.prompt_tokens)] for _ in range(profile.batch)
        ]
        done = _round(runner, prompts, bucket, profile.decode_tokens)
        if turn >= profile.warmup_requests:
            rounds.append(done)
    steps = [step for done in rounds for step in done.step_s]
    return InProcess(
        started_utc=started,
        contract=contract,
        lock=lock,
        weights=weights,
        profile=profile,
        runner=to_data(runner.facts),
        rounds=tuple(rounds),
        tokens_per_second=median(done.tokens / done.total_s for done in rounds),
        first_token_ms=1e3 * median(done.first_token_s for done in rounds),
        step_ms=1e3 * median(steps),
    )


def _round(runner: Runner, prompts: list[list[int]], bucket: int, decode_tokens: int) -> Round:
    sampling = Sampling(max_tokens=decode_tokens)
    pieces = [Piece(slot=slot, tokens=prompt, sampling=sampling) for slot, prompt in enumerate(prompts)]
    started = perf_counter()
    runner.prefill(pieces)
    first_token_s = perf_counter() - started
    steps = []
    tokens = len(prompts)
    for _ in range(decode_tokens - 1):
        before = perf_counter()
        (chosen,) = runner.decode(bucket, 1)
        steps.append(perf_counter() - before)
        tokens += len(chosen)
    ended = perf_counter()
    for slot in range(len(prompts)):
        runner.release(slot)
    return Round(first_token_s=first_token_s, step_s=tuple(steps), total_s=ended - started, tokens=tokens)
