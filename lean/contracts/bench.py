"""A bench profile: how many tokens in, how many out, how many at once, when they are sent, how often."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast, get_args

from lean.errors import ContractError

Process = Literal["closed", "fixed", "poisson"]
MAX_CLIENTS = 4096  # each holds a connection, and the machine that measures must not be what is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """When measured requests are sent.

    `closed`: in rounds, each waiting for the one before. `fixed` and `poisson` are an open loop, whose
    requests are sent when they are due whether or not others were answered: `rate_per_s` of them a second,
    evenly or with exponential gaps drawn from `seed` (the profile's when left out). A request counts towards
    goodput when its first token came within `ttft_limit_s` of the time it was due, and its time per token is
    within `tpot_limit_s`; without limits, when it was answered in full.
    """

    process: Process = "closed"
    rate_per_s: float | None = None
    seed: int | None = None
    ttft_limit_s: float | None = None
    tpot_limit_s: float | None = None

    def __post_init__(self) -> None:
        settings = (self.rate_per_s, self.seed, self.ttft_limit_s, self.tpot_limit_s)
        if not self.is_open and any(value is not None for value in settings):
            raise ValueError("arrivals: closed rounds have no rate, seed or limits; use fixed or poisson")
        if self.is_open and self.rate_per_s is None:
            raise ValueError(f"arrivals.rate_per_s: {self.process} arrivals need requests a second")
        for name in ("rate_per_s", "ttft_limit_s", "tpot_limit_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"arrivals.{name}: expected more than 0, got {value:g}")

    @property
    def is_open(self) -> bool:
        """Whether requests are sent by the clock, not by answers."""
        return self.process != "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchProfile:
    """`requests` measured requests per stream follow `warmup_requests` that are recorded and not counted.

    `batch` streams run at once, each a closed loop of exact `prompt_tokens` in and `decode_tokens` out, on a
    service with as many slots. `concurrency` runs more streams than there are slots, or fewer. An open loop
    of `arrivals` has no streams of its own: it sends `batch` × `requests` requests.
    """

    SCHEMA: ClassVar[str] = "bench/v1"

    id: str
    prompt_tokens: int
    decode_tokens: int
    batch: int
    warmup_requests: int
    requests: int
    seed: int
    concurrency: int | None = None
    arrivals: Arrivals = Arrivals()

    def __post_init__(self) -> None:
        least_of = {"prompt_tokens": 1, "decode_tokens": 2, "warmup_requests": 1, "requests": 3}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.batch not in (1, 2, 4, 8):
            raise ValueError(f"batch: expected 1, 2, 4 or 8, got {self.batch}")
        if self.concurrency is not None and not 1 <= self.concurrency <= MAX_CLIENTS:
            raise ValueError(f"concurrency: expected 1 to {MAX_CLIENTS}, got {self.concurrency}")
        if self.concurrency is not None and self.arrivals.is_open:
            raise ValueError(
                "concurrency: an open loop sends by the clock; leave concurrency or arrivals out"
            )

    @property
    def clients(self) -> int:
        """Streams of a round."""
        return self.batch if self.concurrency is None else self.concurrency

    @property
    def in_rounds_of_batch(self) -> bool:
        """Whether it is what a contract's buckets speak of: closed rounds of as many streams as slots."""
        return not self.arrivals.is_open and self.clients == self.batch

    @property
    def load(self) -> str:
        """The load in a few words."""
        if self.arrivals.is_open:
            return f"{self.arrivals.process} arrivals of {self.arrivals.rate_per_s:g}/s"
        return f"{self.clients} stream(s) on {self.batch} slot(s)"

    def with_counts(self, *, requests: int | None, warmup_requests: int | None) -> BenchProfile:
        """The profile with other counts, None leaving its own. Errors: `ContractError`."""
        try:
            return replace(
                self,
                requests=self.requests if requests is None else requests,
                warmup_requests=self.warmup_requests if warmup_requests is None else warmup_requests,
            )
        except ValueError as error:
            raise ContractError(f"profile {self.id}: {error}") from None

    def with_load(
        self, *, concurrency: int | None = None, rate_per_s: float | None = None, process: str | None = None
    ) -> BenchProfile:
        """The profile with another load, None leaving its own; a rate alone is of Poisson arrivals.

        As many streams as slots are what a profile has that says nothing of them.

        Errors: `ContractError` for what no profile may have.
        """
        streams = self.concurrency
        if concurrency is not None:
            streams = None if concurrency == self.batch else concurrency
        try:
            return replace(
                self,
                concurrency=streams,
                arrivals=self._arrivals(rate_per_s, process),
            )
        except ValueError as error:
            raise ContractError(f"profile {self.id}: {error}") from None

    def _arrivals(self, rate_per_s: float | None, process: str | None) -> Arrivals:
        if rate_per_s is None and process is None:
            return self.arrivals
        kind = process or (self.arrivals.process if self.arrivals.is_open else "poisson")
        if kind not in get_args(Process):
            raise ValueError(f"arrivals: expected one of {', '.join(get_args(Process))}, got {kind!r}")
        if kind == "closed":
            return Arrivals(rate_per_s=rate_per_s)
        rate = self.arrivals.rate_per_s if rate_per_s is None else rate_per_s
        return replace(self.arrivals, process=cast(Process, kind), rate_per_s=rate)
