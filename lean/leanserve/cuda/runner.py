"""`Runner` on a GPU: the next step is on its way while the last one's tokens are handed on.

A step's tokens are needed by nobody but the reader: the next step reads them on the device. So `decode`
starts the step after the one it was asked for before it waits, and the host's work disappears behind the
device's. Such a step is dropped where it turns out to be wrong: whoever leaves takes only his own row
along; when somebody joins, or a cursor is restored, the others' state is set back by one and that step is
done again, to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.driver import Device, DriverError, Event, open_device
from kernels.qwen3 import BANNED, SLOTS
from lean.errors import CapacityError, PreflightError, UsageError
from lean.leanpack import Pack
from lean.leanserve.cuda.appliance import Appliance, Choose
from lean.leanserve.draws import uniform
from lean.leanserve.plan import BUCKETS, Plan
from lean.leanserve.runner import Choice, Cursor, RunnerFacts, Sampling

CONTEXT_BYTES = 600 << 20  # what a context, loaded kernels and graphs may take beside the plan


@dataclass(slots=True)
class _Slot:
    """One slot as the host knows it: `length` positions are accepted; `epoch` tells occupants apart."""

    length: int = 0
    written: int = 0
    generated: int = 0
    last_token: int | None = None
    sampling: Sampling = Sampling()  # noqa: RUF009  (frozen)
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that was started: whose rows count, and where its tokens arrive."""

    bucket: int
    epochs: dict[int, int]
    tokens: NDArray[np.int32]
    logits: NDArray[np.float32] | None
    done: Event


class CudaRunner:
    """The pack's kernels; see `Runner`. Use on one thread, and `close` it there."""

    def __init__(self, pack: Pack, plan: Plan, *, share: bool | None = None) -> None:
        started = perf_counter()
        self._device = _open(plan)
        try:
            self._appliance = Appliance(self._device, pack, slots=plan.slots, share=share)
        except BaseException:
            self.close()
            raise
        contract = pack.manifest.contract
        self._vocab, self._limit = contract.model.geometry.vocab, contract.max_length
        self._prompt_rows = self._appliance.sizes.prompt_rows
        self._slots = [_Slot() for _ in range(plan.slots)]
        self._ahead: _Flight | None = None
        self._turn = 0
        # Two steps can be out at once; each has its own landing place.
        self._landing = [self._device.pinned(4 * SLOTS).view(np.int32) for _ in range(3)]
        self._events = [self._device.event() for _ in range(3)]
        self._logits: NDArray[np.float32] | None = None
        self._device.synchronise()
        self._facts = RunnerFacts(
            name="cuda",
            device=self._device.facts.name,
            compute_dtype="bfloat16",
            slots=plan.slots,
            buckets=tuple(size for size in BUCKETS if size <= plan.slots),
            max_length=self._limit,
            vocab=self._vocab,
            prefill_tile=max(self._prompt_rows),
            threads=1,
            operator_coverage=1.0,
            load_seconds=perf_counter() - started,
        )

    @property
    def facts(self) -> RunnerFacts:
        """What runs, fixed at construction."""
        return self._facts

    def close(self) -> None:
        """Give back everything on the device."""
        self._device.__exit__(None, None, None)

    def prefill(self, slot: int, tokens: Sequence[int], sampling: Sampling | None) -> Choice | None:
        """Append prompt tokens; see the protocol.

        Errors: `UsageError` for a wrong slot or token, `CapacityError` past the slot's length; nothing is
        written then.
        """
        self._check(slot, tokens, sampling)
        held = self._slots[slot]
        place = held.length
        for start in range(0, len(tokens), max(self._prompt_rows)):
            chunk = tokens[start : start + max(self._prompt_rows)]
            self._prompt(slot, place, chunk)
            place += len(chunk)
        self._slots[slot] = _Slot(
            length=place, written=place, sampling=sampling or Sampling(), epoch=held.epoch + 1
        )
        return None if sampling is None else self._first(slot)

    def decode(self, bucket: int, steps: int) -> list[dict[int, Choice]]:
        """`steps` steps of `bucket` rows; see the protocol.

        Errors: `UsageError` for a wrong bucket, `CapacityError` when a slot cannot hold the steps; no slot
        has moved then.
        """
        if bucket not in self._facts.buckets:
            raise UsageError(
                f"bucket: expected one of {', '.join(map(str, self._facts.buckets))}, got {bucket}"
            )
        for slot in self._armed(bucket):
            self._require(slot, steps)
        return [self._step(bucket) for _ in range(steps)]

    def release(self, slot: int) -> None:
        """Empty the slot. Its rows stay and are never read."""
        self._check_slot(slot)
        self._slots[slot] = _Slot(epoch=self._slots[slot].epoch + 1)
        self._appliance.write("positions", -1, first=slot)

    def snapshot(self, slot: int) -> Cursor:
        """Where the slot stands."""
        self._check_slot(slot)
        held = self._slots[slot]
        return Cursor(length=held.length, generated=held.generated, last_token=held.last_token)

    def restore(self, slot: int, cursor: Cursor) -> None:
        """Back to a snapshot of this slot, with the settings of its last prefill.

        Errors: `UsageError` when the slot no longer holds the cursor's rows.
        """
        self._check_slot(slot)
        held = self._slots[slot]
        if not 0 <= cursor.length <= held.written:
            raise UsageError(
                f"slot {slot}: cannot restore {cursor.length} positions, it holds {held.written}"
            )
        self._set_back()
        self._slots[slot] = replace(
            held,
            length=cursor.length,
            generated=cursor.generated,
            last_token=cursor.last_token,
            epoch=held.epoch + 1,
        )
        self._place(slot)

    # Prompts.

    def _prompt(self, slot: int, first: int, tokens: Sequence[int]) -> None:
        count = len(tokens)
        rows = next(rows for rows in self._prompt_rows if rows >= count)
        padded = np.zeros(rows, np.int32)
        padded[:count] = tokens
        self._appliance.write("prompt", padded)
        self._appliance.write("span", [slot, first, count, count - 1])
        self._appliance.write("last", count - 1)
        self._appliance.prompt(rows)

    def _first(self, slot: int) -> Choice:
        """Choose the token behind the prompt and let the slot decode."""
        self._set_back()
        held = self._slots[slot]
        sampling = held.sampling
        banned = np.full(BANNED, -1, np.int32)
        banned[: len(sampling.suppress)] = sampling.suppress
        write = self._appliance.write
        write("banned", banned, first=slot * BANNED)
        write("until", sampling.suppress_steps, first=slot)
        write("temperature", sampling.temperature, first=slot)
        write("top_k", sampling.top_k, first=slot)
        write("top_p", sampling.top_p, first=slot)
        write("uniform", uniform(sampling.seed, 0), first=slot)
        self._place(slot)
        self._appliance.predict(self._choose([slot]))
        flight = self._land(bucket=1, slots=[slot], rows=1)
        flight.done.wait()
        return self._accept(slot, int(flight.tokens[0]), flight, row=0, advance=0)

    def _place(self, slot: int) -> None:
        held = self._slots[slot]
        write = self._appliance.write
        write("positions", held.length, first=slot)
        write("tokens", held.last_token or 0, first=slot)
        write("drawn", held.generated, first=slot)

    # Steps.

    def _step(self, bucket: int) -> dict[int, Choice]:
        armed = self._armed(bucket)
        if not armed:
            return {}
        flight, self._ahead = self._ahead, None
        epochs = {slot: self._slots[slot].epoch for slot in armed}
        if flight is not None and not self._fits(flight, bucket, epochs):
            self._ahead = flight
            self._set_back()
            flight = None
        if flight is None:
            flight = self._start(bucket, armed, ahead=0)
        if flight.logits is None and all(self._slots[slot].length + 1 < self._limit for slot in armed):
            self._ahead = self._start(bucket, armed, ahead=1)
        flight.done.wait()
        return {slot: self._accept(slot, int(flight.tokens[slot]), flight, row=slot) for slot in armed}

    def _fits(self, flight: _Flight, bucket: int, epochs: dict[int, int]) -> bool:
        return flight.bucket == bucket and epochs.items() <= flight.epochs.items()

    def _start(self, bucket: int, armed: Sequence[int], *, ahead: int) -> _Flight:
        choose = self._choose(armed)
        if choose == "sampled":
            draws = np.zeros(SLOTS, np.float32)
            for slot in armed:
                held = self._slots[slot]
                draws[slot] = uniform(held.sampling.seed, held.generated + ahead)
            self._appliance.write("uniform", draws)
        self._appliance.decode(bucket, choose)
        return self._land(bucket=bucket, slots=armed, rows=bucket)

    def _land(self, *, bucket: int, slots: Sequence[int], rows: int) -> _Flight:
        """Let the started work's tokens, and its logits where somebody wants probabilities, come back."""
        self._turn = (self._turn + 1) % len(self._landing)
        tokens, done = self._landing[self._turn], self._events[self._turn]
        self._device.copy_out(self._appliance.buffers["chosen"], tokens)
        logits = None
        if any(self._slots[slot].sampling.top_logprobs is not None for slot in slots):
            if self._logits is None:
                self._logits = self._device.pinned(4 * SLOTS * self._vocab).view(np.float32)
            logits = self._logits.reshape(SLOTS, self._vocab)
            self._device.copy_out(self._appliance.buffers["logits"], logits[:rows])
        done.record(self._device.stream)
        epochs = {slot: self._slots[slot].epoch for slot in slots}
        return _Flight(bucket, epochs, tokens, logits, done)

    def _set_back(self) -> None:
        """Drop the step that is on its way: every slot that it moved is put back to what was accepted."""
        flight, self._ahead = self._ahead, None
        if flight is None:
            return
        flight.done.wait()
        for slot, epoch in flight.epochs.items():
            if self._slots[slot].epoch == epoch:
                self._place(slot)

    def _accept(self, slot: int, token: int, flight: _Flight, *, row: int, advance: int = 1) -> Choice:
        held = self._slots[slot]
        if not 0 <= token < self._vocab:
            raise RuntimeError(f"slot {slot}: the device chose {token}, not in a vocabulary of {self._vocab}")
        held.length += advance
        held.written = held.length
        held.generated += 1
        held.last_token = token
        if flight.logits is None or held.sampling.top_logprobs is None:
            return Choice(token=token)
        return _with_logprobs(flight.logits[row], token, held.sampling.top_logprobs)

    def _choose(self, slots: Sequence[int]) -> Choose:
        return "sampled" if any(self._slots[slot].sampling.temperature > 0 for slot in slots) else "greedy"

    # Checks.

    def _armed(self, bucket: int) -> list[int]:
        return [slot for slot, held in enumerate(self._slots[:bucket]) if held.last_token is not None]

    def _require(self, slot: int, count: int) -> None:
        held = self._slots[slot].length
        if held + count > self._limit:
            raise CapacityError(
                f"slot {slot}: {held} positions held, {count} more asked for, but a slot has {self._limit}; "
                "shorten the prompt, ask for fewer tokens, or build the pack for a longer bucket"
            )

    def _check(self, slot: int, tokens: Sequence[int], sampling: Sampling | None) -> None:
        self._check_slot(slot)
        if not tokens:
            raise UsageError("prompt: expected at least one token")
        suppress = sampling.suppress if sampling else ()
        for what, ids in (("prompt", tokens), ("suppress", suppress)):
            wrong = next((token for token in ids if not 0 <= token < self._vocab), None)
            if wrong is not None:
                raise UsageError(f"{what}: token {wrong} is outside the vocabulary of {self._vocab}")
        if len(suppress) > BANNED:
            raise UsageError(f"suppress: {len(suppress)} tokens, but the device holds back at most {BANNED}")
        self._require(slot, len(tokens))

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self._facts.slots:
            raise UsageError(f"slot: expected 0 to {self._facts.slots - 1}, got {slot}")


def _with_logprobs(logits: NDArray[np.float32], token: int, count: int) -> Choice:
    """The choice with natural log probabilities from logits [V], and the `count` likeliest, ties by index."""
    wide = logits.astype(np.float64)
    highest = wide.max()
    logprobs = wide - (highest + np.log(np.exp(wide - highest).sum()))
    order: Any = np.argsort(-logprobs, kind="stable")[:count]
    top = tuple((int(i), float(logprobs[i])) for i in order)
    return Choice(token=token, logprob=float(logprobs[token]), top=top)


def _open(plan: Plan) -> Device:
    """The first GPU, with room for the plan. Errors: `PreflightError` before anything is allocated."""
    try:
        device = open_device()
    except DriverError as error:
        raise PreflightError(f"the cuda runner needs a GPU: {error}") from None
    needed, free = plan.total_bytes + CONTEXT_BYTES, device.free_memory()
    if not device.facts.unified and needed > free:
        device.__exit__(None, None, None)
        raise PreflightError(
            f"{plan.contract} with {plan.slots} slot(s) needs {needed:,} bytes on {device.facts.name}, "
            f"{free:,} are free; use fewer --slots, stop what else runs there, or choose a smaller model"
        )
    return device
