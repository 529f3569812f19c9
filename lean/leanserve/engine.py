"""The engine: one worker thread that drives a runner through prefill chunks and decode steps for all streams.

Guarantees, each held by a test. A bucket is the smallest that holds the streams, grows when one joins and
never shrinks while any stream lives. A cancelled stream leaves its slot before the next decode step. Prompts
go in by chunks, those that wait together in one call, one tile's worth between two decode steps, so running
streams keep flowing. A runner that fails takes its requests with it and nothing else is run on it.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from typing import Literal

from lean.leanserve.region_times import RegionLog
from lean.leanserve.request import Event, Failed, GenerationRequest, Refusal, RefusalKind
from lean.leanserve.runner import Choice, Piece, Runner, RunnerFacts, Sampling
from lean.leanserve.stats import ServiceStats
from lean.leanserve.stream import Stream

State = Literal["loading", "ready", "draining", "failed", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Limits of the engine.

    `queue_limit`: requests that may wait for a slot. `pinned_bucket`: always decode with this many rows,
    which makes a stream byte-identical whatever its neighbours. `lone_chunk_tiles`: prefill tiles per chunk
    while nothing decodes. `stall_seconds`: a runner call that takes longer makes the engine unhealthy.
    `regions`: where the times of each step's regions go, once the service is ready.
    """

    queue_limit: int = 32
    pinned_bucket: int | None = None
    lone_chunk_tiles: int = 4
    stall_seconds: float = 60.0
    regions: RegionLog | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """The engine at one moment. `healthy`: it produced a token, takes requests, and the runner answers."""

    state: State
    detail: str
    healthy: bool
    running: int
    waiting: int
    bucket: int


class Engine:
    """Owns the runner and the one thread that uses it.

    `make_runner` is called on that thread, because thread pools and devices are per thread.
    """

    def __init__(
        self,
        make_runner: Callable[[], Runner],
        *,
        token_bytes: Callable[[int], bytes],
        settings: EngineSettings,
        stats: ServiceStats,
    ) -> None:
        self._make_runner = make_runner
        self._token_bytes = token_bytes
        self._settings = settings
        self._stats = stats
        self._wake = threading.Condition()
        self._state: State = "loading"
        self._detail = "the model is loading"
        self._waiting: deque[Stream] = deque()
        self._live: dict[int, Stream] = {}
        self._bucket = 0
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._runner: Runner
        self.ready: Future[RunnerFacts] = Future()
        self.ready.set_running_or_notify_cancel()  # nobody who stops waiting for it may cancel it

    # Called from any thread.

    def start(self) -> None:
        """Load the runner and produce one real token in the background; `ready` then holds its facts."""
        self._thread.start()

    def submit(self, request: GenerationRequest, sink: Callable[[Event], None]) -> Stream:
        """Queue a request.

        Errors: `Refusal` when loading, full, draining, failed or stopped; nothing was queued then.
        """
        with self._wake:
            if self._state != "ready":
                raise Refusal(_REFUSALS[self._state], self._detail)
            positions, slots = self.ready.result().max_length, self._slots()
            if len(request.prompt) + request.max_tokens > positions:
                raise ValueError(f"prompt and max_tokens exceed the slot's {positions} positions")
            if len(self._live) + len(self._waiting) >= slots + self._settings.queue_limit:
                raise Refusal(
                    "full", f"all {slots} slots and {self._settings.queue_limit} queue places are taken"
                )
            stream = Stream(request, sink, self._token_bytes)
            self._waiting.append(stream)
            self._wake.notify_all()
            return stream

    def cancel(self, stream: Stream) -> None:
        """End a stream early; it gets no more events.

        It leaves the queue at once, and its slot before the next decode step.
        """
        with self._wake:
            stream.cancel_requested = True
            if stream in self._waiting:
                self._waiting.remove(stream)
                self._count("cancelled")
            self._wake.notify_all()

    def status(self) -> EngineStatus:
        """What the engine is doing now."""
        with self._wake:
            busy = self._busy_since
            stalled = busy is not None and monotonic() - busy > self._settings.stall_seconds
            detail = (
                f"the runner has not answered for {self._settings.stall_seconds:g} s"
                if stalled
                else self._detail
            )
            return EngineStatus(
                state=self._state,
                detail=detail,
                healthy=self._state == "ready" and not stalled,
                running=len(self._live),
                waiting=len(self._waiting),
                bucket=self._bucket,
            )

    @property
    def failure(self) -> str | None:
        """Why the runner failed, if it did."""
        with self._wake:
            return self._detail if self._state == "failed" else None

    def drain(self, seconds: float) -> bool:
        """Refuse new requests and wait for the accepted ones; whether all of them ended within `seconds`."""
        with self._wake:
            if self._state in ("ready", "loading"):
                self._state, self._detail = "draining", "the service is shutting down"
            return self._wake.wait_for(lambda: not self._live and not self._waiting, seconds)

    def stop(self, seconds: float = 5.0) -> None:
        """End every stream now, and the worker thread after the runner's last call or `seconds`."""
        with self._wake:
            if self._state != "failed":
                self._state, self._detail = "stopped", "the service was stopped"
            victims = self._take_all()
            self._wake.notify_all()
        self._end(victims, "stopped", "the service was stopped before this request finished")
        if self._thread.is_alive():
            self._thread.join(seconds)
        if self._settings.regions is not None and self._thread.is_alive():
            self._settings.regions.abandon()

    # The worker thread.

    def _work(self) -> None:
        try:
            self._runner = self._make_runner()
            self._first_token()
        except Exception as error:
            self._fail(f"the runner did not start: {error}")
            self.ready.set_exception(error)
            return
        with self._wake:
            if self._state == "loading":
                self._state, self._detail = "ready", "ready"
        self.ready.set_result(self._runner.facts)
        try:
            if self._settings.regions is not None:
                self._runner.time_regions(self._settings.regions)
            while self._await_work():
                self._free_cancelled()
                self._prefill_some()
                self._free_cancelled()  # the prompts took their time
                self._decode_once()
            if self._settings.regions is not None:
                self._runner.time_regions(None)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self._fail(f"the runner failed: {type(error).__name__}: {error}")
            if self._settings.regions is not None:  # steps that it had not told of
                self._settings.regions.abandon()

    def _first_token(self) -> None:
        """One real prefill and one real step, before anyone may call the service ready."""
        facts = self._runner.facts
        pinned = self._settings.pinned_bucket
        if pinned is not None and pinned not in facts.buckets:
            raise ValueError(f"bucket {pinned} is not one of the runner's {facts.buckets}")
        (choice,) = self._runner.prefill([Piece(slot=0, tokens=(0,), sampling=Sampling())])
        if choice is None or not 0 <= choice.token < facts.vocab:
            raise RuntimeError(f"the runner's first token is {choice}, not in a vocabulary of {facts.vocab}")
        self._runner.decode(self._bucket_for(1), 1)
        self._runner.release(0)
        self._bucket = 0

    def _await_work(self) -> bool:
        with self._wake:
            self._busy_since = None
            self._wake.wait_for(lambda: self._waiting or self._live or self._state in ("stopped", "failed"))
            self._busy_since = monotonic()
            return self._state not in ("stopped", "failed")

    def _free_cancelled(self) -> None:
        for slot, stream in list(self._live.items()):
            if stream.cancel_requested:
                self._count("cancelled")
                self._free(slot)

    def _free(self, slot: int) -> None:
        self._runner.release(slot)
        with self._wake:
            self._live.pop(slot, None)
            if not self._live:
                self._bucket = 0
                self._wake.notify_all()

    def _admit(self) -> None:
        with self._wake:
            for slot in range(self._slots()):
                if not self._waiting:
                    return
                if slot not in self._live:
                    stream = self._waiting.popleft()
                    stream.admit(slot)
                    self._live[slot] = stream
                    self._stats.queue_seconds.observe(stream.queue_seconds)

    def _prefill_some(self) -> None:
        """Hand the runner the prompt chunks whose turn it is, all at once, and deliver the first tokens."""
        chunks = self._next_chunks()
        if not chunks:
            return
        choices = self._runner.prefill([piece for _, piece in chunks])
        for (stream, piece), choice in zip(chunks, choices, strict=True):
            if (choice is not None) != stream.armed:
                raise RuntimeError(
                    f"prefill of slot {piece.slot} answered {choice} with the prompt complete: {stream.armed}"
                )
            self._stats.prompt_tokens += len(piece.tokens)
            if choice is not None:
                self._deliver(stream, choice)
                if not stream.cancel_requested:
                    self._stats.first_token_seconds.observe(stream.first_token_seconds)

    def _next_chunks(self) -> list[tuple[Stream, Piece]]:
        """Chunks in the order of admission, up to one tile's worth while others wait for a token.

        Each is whole tiles of a prompt, or its end. Short prompts that wait together go in together, so that
        their streams decode together; who goes in behind a prompt's end makes its stream wait.
        """
        self._admit()
        tile, grain = self._runner.facts.prefill_tile, self._runner.facts.prefill_grain
        live = list(self._live.values())
        left = whole = tile * (1 if any(s.armed for s in live) else self._settings.lone_chunk_tiles)
        chunks: list[tuple[Stream, Piece]] = []
        for stream in live:
            if stream.armed or stream.cancel_requested:
                continue
            tokens = stream.next_chunk(max(left // tile, 1) * tile)
            cost = -(-len(tokens) // grain) * grain
            if cost > left and left < whole:
                break
            chunks.append((stream, _take(stream, tokens)))
            left = min(left, tile) - cost if stream.armed else left - cost
            if left <= 0:
                break
        return chunks

    def _decode_once(self) -> None:
        armed = {slot: stream for slot, stream in list(self._live.items()) if stream.armed}
        if not armed:
            return
        started = monotonic()
        (step,) = self._runner.decode(self._bucket_for(max(armed) + 1), 1)
        self._stats.step_seconds.observe(monotonic() - started)
        self._stats.decode_steps += 1
        if step.keys() != armed.keys():
            raise RuntimeError(f"a decode step advanced slots {sorted(step)}, expected {sorted(armed)}")
        for slot, stream in armed.items():
            self._deliver(stream, step[slot])

    def _bucket_for(self, rows: int) -> int:
        """The next step's bucket: pinned, or the smallest for `rows`, but never smaller than the last."""
        needed = self._settings.pinned_bucket or max(rows, self._bucket)
        self._bucket = min(size for size in self._runner.facts.buckets if size >= needed)
        return self._bucket

    def _slots(self) -> int:
        """Slots in use: a pinned bucket smaller than the runner's slots leaves the others empty."""
        slots = self._runner.facts.slots
        return min(slots, self._settings.pinned_bucket or slots)

    def _count(self, outcome: str) -> None:
        with self._wake:  # any thread may cancel or stop
            self._stats.outcomes[outcome] += 1

    def _deliver(self, stream: Stream, choice: Choice) -> None:
        if stream.cancel_requested:
            return
        event = stream.accept(choice)
        self._stats.generated_tokens += 1
        if event.finish is not None:
            assert stream.slot is not None
            self._free(stream.slot)
            self._count(event.finish)
        stream.sink(event)

    def _fail(self, message: str) -> None:
        with self._wake:
            self._state, self._detail = "failed", message
            self._busy_since = None
            victims = self._take_all()
            self._wake.notify_all()
        self._end(victims, "failed", message)

    def _take_all(self) -> list[Stream]:
        victims = [*self._live.values(), *self._waiting]
        self._live.clear()
        self._waiting.clear()
        self._bucket = 0
        for stream in victims:
            # The worker may be inside a step: what it still brings is not delivered.
            stream.cancel_requested = True
        return victims

    def _end(self, streams: list[Stream], kind: RefusalKind, message: str) -> None:
        for stream in streams:
            self._count(kind)
            stream.sink(Failed(refusal=Refusal(kind, message)))


def _take(stream: Stream, tokens: tuple[int, ...]) -> Piece:
    """The next piece of a stream's prompt, which counts as prefilled from now on."""
    assert stream.slot is not None
    stream.prefilled += len(tokens)
    return Piece(slot=stream.slot, tokens=tokens, sampling=stream.request.sampling if stream.armed else None)


_REFUSALS: dict[State, RefusalKind] = {
    "loading": "loading",
    "draining": "draining",
    "failed": "failed",
    "stopped": "stopped",
}
