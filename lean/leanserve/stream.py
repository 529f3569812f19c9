"""One request inside the engine: its slot, its progress and its text."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from lean.leanserve.request import Event, FinishReason, Generated, GenerationRequest, Timings
from lean.leanserve.runner import Choice
from lean.leanserve.text import Detokenizer, StopFilter


class Stream:
    """State of one request.

    Only the engine's worker thread changes it, `cancel_requested` aside, which anyone may set. `sink`
    receives the events in order, on the worker thread; it must not block.
    """

    __slots__ = (
        "_accepted",
        "_admitted",
        "_detokenizer",
        "_first_token",
        "_stop",
        "cancel_requested",
        "generated",
        "prefilled",
        "request",
        "sink",
        "slot",
    )

    def __init__(
        self, request: GenerationRequest, sink: Callable[[Event], None], token_bytes: Callable[[int], bytes]
    ) -> None:
        self.request = request
        self.sink = sink
        self.slot: int | None = None
        self.prefilled = 0
        self.generated = 0
        self.cancel_requested = False
        self._detokenizer = Detokenizer(token_bytes)
        self._stop = StopFilter(request.stop_strings)
        self._accepted = self._admitted = self._first_token = monotonic()

    @property
    def armed(self) -> bool:
        """The whole prompt is in, and decode steps advance this stream."""
        return self.prefilled == len(self.request.prompt)

    @property
    def queue_seconds(self) -> float:
        """Time between acceptance and the slot."""
        return self._admitted - self._accepted

    @property
    def first_token_seconds(self) -> float:
        """Time between acceptance and the first token."""
        return self._first_token - self._accepted

    def admit(self, slot: int) -> None:
        """Take a slot."""
        self.slot = slot
        self._admitted = monotonic()

    def next_chunk(self, size: int) -> tuple[int, ...]:
        """The next `size` prompt tokens at most."""
        return self.request.prompt[self.prefilled : self.prefilled + size]

    def accept(self, choice: Choice) -> Generated:
        """Count one generated token and decide whether it is the last."""
        self.generated += 1
        if self.generated == 1:
            self._first_token = monotonic()
        text, finish = self._text_of(choice.token)
        return Generated(
            choice=choice, text=text, finish=finish, timings=self._timings() if finish is not None else None
        )

    def _text_of(self, token: int) -> tuple[str, FinishReason | None]:
        may_stop = self.generated >= self.request.min_tokens
        if token in self.request.stop_tokens:
            return self._tail(may_stop), "stop"
        text, stopped = self._stop.feed(self._detokenizer.feed(token), may_stop=may_stop)
        if stopped:
            return text, "stop"
        if self.generated == self.request.max_tokens:
            return text + self._tail(may_stop), "length"
        return text, None

    def _tail(self, may_stop: bool) -> str:
        text, stopped = self._stop.feed(self._detokenizer.flush(), may_stop=may_stop)
        return text if stopped else text + self._stop.flush()

    def _timings(self) -> Timings:
        return Timings(
            queue_seconds=self.queue_seconds,
            prefill_seconds=self._first_token - self._admitted,
            decode_seconds=monotonic() - self._first_token,
        )
