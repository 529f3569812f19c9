"""What a service made of a load that is not a contract's rounds: how much was answered, in time, or refused.

Standard library only; every value can be recomputed from run.json. The window runs from when the first
measured request was due to the last token of any. TTFT and E2E here are measured from when a request was due,
not from when it was sent, so that a client that was held up cannot flatter the service. Goodput is the term
of DistServe (OSDI 2024) and of `vllm bench serve --goodput`: requests that kept their limits, a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lean.bench.metrics import RequestMetrics, Summary, request_metrics, summarize, window_s
from lean.bench.sample import Sample, measured
from lean.contracts import BenchProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadMetrics:
    """Counts of measured requests, rates over the window in 1/s, and times in seconds.

    `offered` = `answered` + `refused` (HTTP 429) + `failed`; `in_time`: answered in full and within the
    limits of the profile's arrivals. `send_delay_s`: sent after it was due.
    """

    offered: int
    answered: int
    refused: int
    failed: int
    in_time: int
    window_s: float | None
    offered_per_s: float | None
    answered_per_s: float | None
    goodput_per_s: float | None
    tokens_per_s: float | None
    goodput_tokens_per_s: float | None
    send_delay_s: Summary | None
    due_ttft_s: Summary | None
    due_e2e_s: Summary | None


def load_metrics(profile: BenchProfile, samples: Sequence[Sample]) -> LoadMetrics | None:
    """The load's metrics over measured samples; None for a contract's own rounds, or where nothing was sent.

    `tokens_per_s` counts what requests without an error brought, `goodput_tokens_per_s` what those in time
    did. `offered_per_s` is over the time in which requests were due, None for rounds.
    """
    sent = measured(samples)
    if profile.in_rounds_of_batch or not sent:
        return None
    answered = [(s, m) for s in sent if (m := request_metrics(s)) is not None]
    in_time = [m for s, m in answered if _in_time(profile, s, m)]
    refused = sum(sample.refused for sample in sent)
    window = window_s(sent)
    due = sorted(sample.due_ns for sample in sent if sample.scheduled_ns is not None)

    def rate(count: int) -> float | None:
        return count / window if window else None

    return LoadMetrics(
        offered=len(sent),
        answered=len(answered),
        refused=refused,
        failed=len(sent) - len(answered) - refused,
        in_time=len(in_time),
        window_s=window,
        offered_per_s=(len(due) - 1) / ((due[-1] - due[0]) / 1e9) if due and due[-1] > due[0] else None,
        answered_per_s=rate(len(answered)),
        goodput_per_s=rate(len(in_time)),
        tokens_per_s=rate(sum(m.tokens for _, m in answered)),
        goodput_tokens_per_s=rate(sum(m.tokens for m in in_time)),
        send_delay_s=summarize((s.sent_ns - s.due_ns) / 1e9 for s in sent),
        due_ttft_s=summarize(_from_due(s, m.ttft_s) for s, m in answered),
        due_e2e_s=summarize(_from_due(s, m.e2e_s) for s, m in answered),
    )


def _from_due(sample: Sample, since_sent_s: float) -> float:
    return since_sent_s + (sample.sent_ns - sample.due_ns) / 1e9


def _in_time(profile: BenchProfile, sample: Sample, metrics: RequestMetrics) -> bool:
    limits = profile.arrivals
    return (
        metrics.tokens == profile.decode_tokens
        and (limits.ttft_limit_s is None or _from_due(sample, metrics.ttft_s) <= limits.ttft_limit_s)
        and (limits.tpot_limit_s is None or metrics.tpot_s <= limits.tpot_limit_s)
    )
