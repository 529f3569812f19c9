"""Prometheus text from the plain counters.

prometheus_client is imported on the first scrape: start-up does not pay it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from lean.leanserve.engine import EngineStatus
from lean.leanserve.http.errors import ApiError
from lean.leanserve.stats import Histogram, ServiceStats

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class Metrics:
    """A registry of its own over one service's counters."""

    def __init__(self, stats: ServiceStats, status: Callable[[], EngineStatus]) -> None:
        self._stats = stats
        self._status = status

    def render(self) -> tuple[bytes, str]:
        """The exposition text and its content type. Errors: `ApiError` 501 where its library is missing."""
        try:
            from prometheus_client import CollectorRegistry
            from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
        except ModuleNotFoundError as error:
            raise ApiError(
                501,
                f"no metrics: the Python package {error.name} is missing where this service runs; "
                "pip install prometheus-client there and start the service again",
                code="metrics_unavailable",
            ) from None

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterable[Metric]:
        """The metrics of this moment; prometheus_client calls it."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        stats, status = self._stats, self._status()
        for name, text, value in (
            ("ready", "1 when the service answers requests", float(status.healthy)),
            ("streams_running", "Streams that hold a slot", status.running),
            ("streams_waiting", "Requests in the queue", status.waiting),
            ("bucket_rows", "Rows of the current decode bucket, 0 when idle", status.bucket),
        ):
            yield GaugeMetricFamily(f"leanserve_{name}", text, value=value)
        for name, text, count in (
            ("prompt_tokens", "Prompt tokens prefilled", stats.prompt_tokens),
            ("generated_tokens", "Tokens generated", stats.generated_tokens),
            ("decode_steps", "Decode steps run", stats.decode_steps),
        ):
            yield CounterMetricFamily(f"leanserve_{name}", text, value=count)
        outcomes = CounterMetricFamily("leanserve_streams", "Streams by how they ended", labels=["outcome"])
        for outcome, count in sorted(stats.outcomes.items()):
            outcomes.add_metric([outcome], count)
        yield outcomes
        responses = CounterMetricFamily("leanserve_responses", "HTTP responses", labels=["route", "status"])
        for (route, code), count in sorted(stats.responses.items()):
            responses.add_metric([route, str(code)], count)
        yield responses
        yield _histogram("queue_seconds", "Time in the queue", stats.queue_seconds)
        yield _histogram(
            "first_token_seconds", "Time from acceptance to the first token", stats.first_token_seconds
        )
        yield _histogram("step_seconds", "Time of one decode step", stats.step_seconds)


def _histogram(name: str, text: str, source: Histogram) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    buckets, running = [], 0
    for bound, count in zip((*map(str, source.bounds), "+Inf"), list(source.counts), strict=True):
        running += count
        buckets.append((bound, float(running)))
    return HistogramMetricFamily(f"leanserve_{name}", text, buckets=buckets, sum_value=source.total)
