"""What the engine is asked for and what it answers: frozen records, no transport, no text format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lean.leanserve.runner import Choice, Sampling

FinishReason = Literal["stop", "length"]
RefusalKind = Literal["loading", "full", "draining", "failed", "stopped"]


class Refusal(Exception):
    """The engine does not take, or no longer serves, a request.

    `kind` says why; the message is for the client.
    """

    def __init__(self, kind: RefusalKind, message: str) -> None:
        super().__init__(message)
        self.kind: RefusalKind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One stream to generate. Counts are in tokens.

    `stop_tokens` end the stream and add no text; it is empty under ignore_eos. `stop_strings` end it where
    the first of them is complete, counted from token number `min_tokens` on, and are cut from the text.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    min_tokens: int = 0
    stop_tokens: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt: expected at least one token")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1, got {self.max_tokens}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of one finished stream went, in seconds on the host's monotonic clock."""

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """One generated token and the text it set free.

    The text is empty while it may still be part of a stop string or of a longer UTF-8 sequence. The last one
    of a stream has `finish` and `timings`.
    """

    choice: Choice
    text: str
    finish: FinishReason | None = None
    timings: Timings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The stream ended without finishing: the runner failed or the service was stopped."""

    refusal: Refusal


Event = Generated | Failed
