"""Latency and throughput from raw samples.

Standard library only; every value can be recomputed from run.json.

Names and definitions are those of `vllm bench serve` and NVIDIA's GenAI-Perf, which agree on them:

    TTFT   time to first token: request sent -> first chunk that carries a token
    E2E    request sent -> last chunk that carries a token
    TPOT   time per output token after the first: (E2E - TTFT) / (N - 1), N from the server's usage counts
    ITL    inter-token latency: gap between chunks that carry tokens

A chunk is not a token. Chunks that arrived in one read are one arrival; an arrival of k tokens stands for k
values of ITL, each a k-th of its gap. ITL is pooled over requests, everything else has one value per request
or per round.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lean.bench.sample import Sample, measured
from lean.bench.traffic import step_traffic
from lean.contracts import BenchProfile, Contract
from lean.percentile import percentile

BandwidthBasis = Literal["data sheet", "measured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """`std` is the sample standard deviation (n − 1), None for one value.

    Percentiles interpolate linearly.
    """

    count: int
    median: float
    mean: float
    std: float | None
    p95: float
    p99: float
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """One request in seconds and tokens per second.

    `itl_s` is empty where chunks did not tell their counts.
    """

    tokens: int
    ttft_s: float
    tpot_s: float
    e2e_s: float
    itl_s: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens over E2E, prompt time included."""
        return self.tokens / self.e2e_s

    @property
    def decode_tokens_per_s(self) -> float:
        """1 / TPOT."""
        return 1 / self.tpot_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetrics:
    """A run's measured requests. None where the samples do not hold what a metric needs.

    `tokens_per_s` is the headline: generated tokens of all streams of a round over the time from the round's
    first send to its last token. `request_tokens_per_s` and `decode_tokens_per_s` are of single requests.
    `bytes_per_s` is the least traffic of the contract's geometry and encoding over TPOT (see `traffic`),
    `bandwidth_share` that over `bandwidth_gbs` (0..1): what reading alone reached in the same run where
    `bandwidth_basis` says "measured", else what the target's data sheet says; None where neither is known.
    Records of version 1 do not say which: it is the data sheet.
    """

    tokens_per_s: Summary | None
    request_tokens_per_s: Summary | None
    decode_tokens_per_s: Summary | None
    ttft_s: Summary | None
    tpot_s: Summary | None
    itl_s: Summary | None
    e2e_s: Summary | None
    bytes_per_step: float | None
    bytes_per_s: Summary | None
    bandwidth_share: Summary | None
    bandwidth_gbs: float | None = None
    bandwidth_basis: BandwidthBasis | None = None


def summarize(values: Iterable[float]) -> Summary | None:
    """The summary of one metric, None without values."""
    found = tuple(values)
    if not found:
        return None
    return Summary(
        count=len(found),
        median=statistics.median(found),
        mean=statistics.fmean(found),
        std=statistics.stdev(found) if len(found) > 1 else None,
        p95=percentile(found, 95),
        p99=percentile(found, 99),
        minimum=min(found),
        maximum=max(found),
    )


def arrivals(sample: Sample) -> tuple[tuple[int, int | None], ...]:
    """(time in ns, tokens) of each moment tokens arrived; None where a chunk of that moment did not say."""
    merged: dict[int, int | None] = {}
    for at, tokens in zip(sample.event_ns, sample.event_tokens, strict=True):
        before = merged.get(at, 0)
        merged[at] = None if before is None or tokens is None else before + tokens
    return tuple((at, tokens) for at, tokens in merged.items() if tokens != 0)


def token_gaps_s(sample: Sample) -> tuple[tuple[int, float], ...]:
    """(1-based token number, ITL in seconds) of every token after the first arrival.

    Empty where counts are missing.
    """
    seen = arrivals(sample)
    if not seen or any(tokens is None for _, tokens in seen):
        return ()
    gaps: list[tuple[int, float]] = []
    position = seen[0][1] or 0
    for (before, _), (at, tokens) in itertools.pairwise(seen):
        share = (at - before) / 1e9 / (tokens or 1)
        for _ in range(tokens or 0):
            position += 1
            gaps.append((position, share))
    return tuple(gaps)


def request_metrics(sample: Sample) -> RequestMetrics | None:
    """One request's metrics; None for a failed one, or one with fewer than two tokens or two arrivals."""
    seen = arrivals(sample)
    tokens = sample.usage_completion_tokens
    if tokens is None:
        tokens = sample.counted_tokens
    if sample.error is not None or tokens is None or tokens < 2 or len(seen) < 2:
        return None
    first, last = seen[0][0], seen[-1][0]
    return RequestMetrics(
        tokens=tokens,
        ttft_s=(first - sample.sent_ns) / 1e9,
        tpot_s=(last - first) / 1e9 / (tokens - 1),
        e2e_s=(last - sample.sent_ns) / 1e9,
        itl_s=tuple(gap for _, gap in token_gaps_s(sample)),
    )


def window_s(samples: Sequence[Sample]) -> float | None:
    """Seconds from when the first request was due to the last token of any; None where no token came."""
    ends = [seen[-1][0] for sample in samples if (seen := arrivals(sample))]
    return (max(ends) - min(sample.due_ns for sample in samples)) / 1e9 if ends else None


def round_tokens_per_s(samples: Sequence[Sample]) -> tuple[float, ...]:
    """Tokens/s of each round, all streams together.

    A round with a request that has no metrics is left out, unless the service refused it.
    """
    rounds: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        rounds[sample.round].append(sample)
    rates = []
    for _, sent in sorted(rounds.items()):
        members = [member for member in sent if not member.refused]
        found = [request_metrics(member) for member in members]
        known = [metrics for metrics in found if metrics is not None]
        window = window_s(members)
        if len(known) == len(members) and window:
            rates.append(sum(metrics.tokens for metrics in known) / window)
    return tuple(rates)


def _window_tokens_per_s(samples: Sequence[Sample]) -> tuple[float, ...]:
    """Tokens/s over the whole window of an open loop, which has no rounds."""
    window = window_s(samples)
    known = [metrics for metrics in map(request_metrics, samples) if metrics is not None]
    return (sum(metrics.tokens for metrics in known) / window,) if window and known else ()


def run_metrics(
    contract: Contract, profile: BenchProfile, samples: Sequence[Sample], measured_gbs: float | None = None
) -> RunMetrics:
    """All metrics of a run over its measured samples; warm-ups do not count.

    `measured_gbs`: what reading alone reached on the same machine in the same run, in GB/s.
    """
    sent = measured(samples)
    requests = [metrics for metrics in map(request_metrics, sent) if metrics is not None]
    is_open = profile.arrivals.is_open
    # How many streams an open loop's steps had is not known, nor so what they read.
    step_bytes = None if is_open else step_traffic(contract, profile).total_bytes
    rates = tuple(step_bytes / r.tpot_s for r in requests) if step_bytes is not None else ()
    bandwidth = measured_gbs or contract.target_facts.memory_bandwidth_gbs
    basis: BandwidthBasis = "measured" if measured_gbs else "data sheet"
    return RunMetrics(
        tokens_per_s=summarize((_window_tokens_per_s if is_open else round_tokens_per_s)(sent)),
        request_tokens_per_s=summarize(r.tokens_per_s for r in requests),
        decode_tokens_per_s=summarize(r.decode_tokens_per_s for r in requests),
        ttft_s=summarize(r.ttft_s for r in requests),
        tpot_s=summarize(r.tpot_s for r in requests),
        itl_s=summarize(gap for r in requests for gap in r.itl_s),
        e2e_s=summarize(r.e2e_s for r in requests),
        bytes_per_step=step_bytes,
        bytes_per_s=summarize(rates),
        bandwidth_share=summarize(rate / (bandwidth * 1e9) for rate in rates) if bandwidth else None,
        bandwidth_gbs=bandwidth,
        bandwidth_basis=basis if bandwidth else None,
    )
