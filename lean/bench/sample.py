"""One request, as it was sent and as its answer arrived: raw times only, nothing derived."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["warmup", "measured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRecord:
    """The prompt of one request. `ids_sha256` hashes the token ids as comma-joined decimal numbers."""

    phase: Phase
    stream: int
    round: int
    tokens: int
    ids_sha256: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request of one stream.

    Times are nanoseconds of `time.perf_counter_ns` since the run's own origin. `event_ns[i]` is when the
    bytes that completed the i-th streamed chunk arrived, and `event_tokens[i]` how many tokens that chunk
    carried: a chunk is not a token, so None means the server did not say. `usage_*` are the server's own
    final counts. `finished` means the stream ended as its server ends one, with `[DONE]` where it sends that.
    `error` says in one line why a request failed. `scheduled_ns` is when an open loop was due to send it,
    None in closed rounds: what is measured from there cannot be flattered by a client that was held up.
    """

    phase: Phase
    stream: int
    round: int
    prompt_sha256: str
    prompt_tokens: int
    max_new_tokens: int
    temperature: float
    ignore_eos: bool
    started_utc: str
    sent_ns: int
    first_byte_ns: int | None
    event_ns: tuple[int, ...]
    event_tokens: tuple[int | None, ...]
    end_ns: int
    http_status: int | None
    usage_prompt_tokens: int | None
    usage_completion_tokens: int | None
    finish_reason: str | None
    token_ids_sha256: str | None
    text_excerpt: str
    finished: bool
    error: str | None
    scheduled_ns: int | None = None

    def __post_init__(self) -> None:
        if len(self.event_ns) != len(self.event_tokens):
            counts, events = len(self.event_tokens), len(self.event_ns)
            raise ValueError(f"event_tokens: {counts} counts for {events} events; expected one each")

    @property
    def counted_tokens(self) -> int | None:
        """Tokens summed over the chunks, or None where a chunk did not say how many it carried."""
        known = [count for count in self.event_tokens if count is not None]
        return sum(known) if len(known) == len(self.event_tokens) else None

    @property
    def due_ns(self) -> int:
        """When it was to be sent: by the schedule, or when it was."""
        return self.sent_ns if self.scheduled_ns is None else self.scheduled_ns

    @property
    def refused(self) -> bool:
        """Whether the service said that it is full, by the status that means it (429)."""
        return self.http_status == 429

    @property
    def name(self) -> str:
        """How messages call this request."""
        return f"{self.phase} request of stream {self.stream}, round {self.round}"


def measured(samples: Iterable[Sample]) -> list[Sample]:
    """Those that count: no warm-ups."""
    return [sample for sample in samples if sample.phase == "measured"]
