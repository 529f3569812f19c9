"""`Runner` on a GPU: the next step is on its way while the last one's tokens are handed on.

A step's tokens are needed by nobody but the reader: the next step reads them on the device. So `decode`
starts the step after the one it was asked for before it waits, and the host's work disappears behind the
device's. Every slot has a queue of the steps that moved it and were not read yet. Who joins late has the
shorter queue; who leaves, or is restored, loses his own and nobody else's.

Prompts that come together share programs, see `packing`; the first tokens behind the prompts that end in a
program are chosen together, behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.driver import Device, DriverError, Event, open_device
from kernels.qwen3 import BANNED, GROUP_FIELDS, PROMPT_GROUP, SLOTS
from lean.contracts import Contract
from lean.errors import PreflightError, UsageError
from lean.leanpack import Pack
from lean.leanserve.cuda.appliance import Appliance, Choose
from lean.leanserve.cuda.packing import PromptProgram, pack_pieces
from lean.leanserve.cuda.step_clock import StepClock
from lean.leanserve.draws import uniform
from lean.leanserve.limits import check_bucket, check_pieces, check_rewind, check_room, check_slot
from lean.leanserve.plan import BUCKETS, Plan, available_memory
from lean.leanserve.region_times import RegionLog
from lean.leanserve.runner import Choice, Cursor, Piece, RunnerFacts, Sampling

CONTEXT_BYTES = 600 << 20  # what a context, loaded kernels and graphs may take beside the plan
LANDINGS = SLOTS + 3  # places for tokens on their way; more steps may be unread, see `_Step.settle`
LEAST_TOP_P = float(np.finfo(np.float32).tiny)  # less is 0 in f32, a nucleus of no token at all
DEEPEST = 16  # steps a slot may be behind the device; one that others keep ahead of is set back


@dataclass(slots=True)
class _Step:
    """Work that was started: where its tokens arrive, and its logits where somebody wants probabilities.

    `done` is None once everything arrived. The landing keeps its last step, and so the arrays that the device
    writes to, until it is used again.
    """

    tokens: NDArray[np.int32]
    logits: NDArray[np.float32] | None
    done: Event | None

    def wait(self) -> None:
        """Return when the tokens are there."""
        if self.done is not None:
            self.done.wait()

    def settle(self) -> None:
        """Make the step independent of its landing, which somebody else needs."""
        self.wait()
        self.tokens, self.done = self.tokens.copy(), None


@dataclass(slots=True)
class _Slot:
    """One slot as the host knows it: `length` positions are accepted; `unread` steps moved it further."""

    length: int = 0
    written: int = 0
    generated: int = 0
    last_token: int | None = None
    sampling: Sampling = Sampling()  # noqa: RUF009  (frozen)
    unread: deque[_Step] = field(default_factory=deque)

    @property
    def wants_more(self) -> bool:
        """Whether a token behind the unread ones and the next one may still be asked for."""
        limit = self.sampling.max_tokens
        return limit is None or self.generated + len(self.unread) < limit


class CudaRunner:
    """The pack's kernels; see `Runner`. Use on one thread, and `close` it there."""

    def __init__(
        self,
        appliance: Appliance,
        contract: Contract,
        *,
        slots: int,
        split_k: int | None = None,
        started: float | None = None,
    ) -> None:
        self._appliance = appliance
        self._device = appliance.device
        self._vocab, self._limit = contract.model.geometry.vocab, contract.max_length
        self._prompt_rows = appliance.sizes.prompt_rows
        self._slots = [_Slot() for _ in range(slots)]
        self._landings = [
            (self._device.pinned(4 * SLOTS).view(np.int32), self._device.event()) for _ in range(LANDINGS)
        ]
        self._landed: list[_Step | None] = [None] * LANDINGS
        self._turn = 0
        self._clock: StepClock | None = None
        self._device.synchronise()
        self._facts = RunnerFacts(
            name="cuda",
            device=self._device.facts.name,
            compute_dtype="bfloat16",
            slots=slots,
            buckets=tuple(size for size in BUCKETS if size <= slots),
            max_length=self._limit,
            vocab=self._vocab,
            prefill_tile=max(self._prompt_rows),
            prefill_grain=PROMPT_GROUP,
            threads=1,
            operator_coverage=1.0,
            split_k=split_k,
            load_seconds=0.0 if started is None else perf_counter() - started,
        )

    @classmethod
    def load(cls, pack: Pack, plan: Plan) -> CudaRunner:
        """Bring a pack onto the first GPU.

        Errors: `PreflightError` where there is no GPU, no room, or no kernels for it.
        """
        started = perf_counter()
        device = _open(plan)
        try:
            appliance = Appliance(device, pack, slots=plan.slots, split_k=plan.split_k)
            contract = pack.manifest.contract
            return cls(appliance, contract, slots=plan.slots, split_k=plan.split_k, started=started)
        except BaseException as error:
            device.close(after=error)
            raise

    @property
    def facts(self) -> RunnerFacts:
        """What runs, fixed at construction."""
        return self._facts

    @property
    def appliance(self) -> Appliance:
        """What it runs on, for whoever measures the kernels while no slot holds a stream."""
        return self._appliance

    def time_regions(self, log: RegionLog | None) -> None:
        """See the protocol."""
        if self._clock is not None:
            self._clock.finish()
        self._clock = None if log is None else StepClock(self._appliance, log)

    def close(self) -> None:
        """Give back everything on the device. Errors: `CudaError` when the driver refuses."""
        self._device.close()

    def prefill(self, pieces: Sequence[Piece]) -> list[Choice | None]:
        """Append pieces of prompts; see the protocol.

        Errors: `UsageError` for a wrong slot or token, `CapacityError` past a slot's length; nothing is
        written then, for any of them.
        """
        self._check(pieces)
        places = [self._extend(piece) for piece in pieces]
        landed: dict[int, tuple[_Step, int]] = {}
        for program in pack_pieces([len(piece.tokens) for piece in pieces], self._prompt_rows):
            self._prompt(program, pieces, places)
            ends = {
                pieces[group.piece].slot: index * PROMPT_GROUP + group.count - 1
                for index, group in enumerate(program.groups)
                if group.ends and pieces[group.piece].sampling is not None
            }
            if ends:
                step = self._predict(ends)
                landed |= {slot: (step, row) for row, slot in enumerate(ends)}
        chosen = {slot: self._accept(slot, step, row=row, advance=0) for slot, (step, row) in landed.items()}
        return [chosen.get(piece.slot) for piece in pieces]

    def decode(self, bucket: int, steps: int) -> list[dict[int, Choice]]:
        """`steps` steps of `bucket` rows; see the protocol.

        Errors: `UsageError` for a wrong bucket, `CapacityError` when a slot cannot hold the steps; no slot
        has moved then.
        """
        check_bucket(bucket, self._facts.buckets)
        for slot in self._armed(bucket):
            self._require(slot, steps)
        return [self._step(bucket) for _ in range(steps)]

    def release(self, slot: int) -> None:
        """Empty the slot. Its rows stay and are never read."""
        check_slot(slot, self._facts.slots)
        self._slots[slot] = _Slot()
        self._appliance.write("positions", -1, first=slot)

    def snapshot(self, slot: int) -> Cursor:
        """Where the slot stands."""
        check_slot(slot, self._facts.slots)
        held = self._slots[slot]
        return Cursor(length=held.length, generated=held.generated, last_token=held.last_token)

    def restore(self, slot: int, cursor: Cursor) -> None:
        """Back to a snapshot of this slot, with the settings of its last prefill.

        Errors: `UsageError` when the slot no longer holds the cursor's rows.
        """
        check_slot(slot, self._facts.slots)
        held = self._slots[slot]
        check_rewind(slot, cursor.length, held.written)
        self._slots[slot] = replace(
            held,
            length=cursor.length,
            generated=cursor.generated,
            last_token=cursor.last_token,
            unread=deque(),
        )
        self._place(slot, live=cursor.last_token is not None)

    # Prompts.

    def _extend(self, piece: Piece) -> int:
        """Make the slot one in its prompt, as long as it will be; where the piece begins."""
        held = self._slots[piece.slot]
        if held.last_token is not None:  # it decodes no more, and no step may move it
            self._appliance.write("positions", -1, first=piece.slot)
        end = held.length + len(piece.tokens)
        self._slots[piece.slot] = _Slot(length=end, written=end, sampling=piece.sampling or Sampling())
        return held.length

    def _prompt(self, program: PromptProgram, pieces: Sequence[Piece], places: Sequence[int]) -> None:
        """Start one program; piece i begins at position `places[i]` of its slot."""
        tokens = np.zeros((program.rows // PROMPT_GROUP, PROMPT_GROUP), np.int32)
        groups = np.zeros((len(tokens), len(GROUP_FIELDS)), np.int32)
        for index, group in enumerate(program.groups):
            piece = pieces[group.piece]
            tokens[index, : group.count] = piece.tokens[group.start : group.start + group.count]
            groups[index] = piece.slot, places[group.piece] + group.start, group.count
        self._appliance.write("prompt", tokens)
        self._appliance.write("groups", groups)
        self._appliance.prompt(program.rows)
        if self._clock is not None:
            self._clock.prompt_ran()

    def _predict(self, ends: Mapping[int, int]) -> _Step:
        """Choose the tokens behind prompts that end, by slot, in these rows, and let the slots decode."""
        slots, rows = list(ends), list(ends.values())
        self._appliance.write("last_rows", rows + rows[:1] * (SLOTS - len(rows)))  # all of them are read
        self._appliance.write("last_slots", slots)
        for slot in slots:
            self._arm(slot)
        self._appliance.predict(len(slots), self._choose(slots))
        return self._land(slots, rows=len(slots))

    def _arm(self, slot: int) -> None:
        """Give the device the slot's settings, and its place."""
        sampling = self._slots[slot].sampling
        banned = np.full(BANNED, -1, np.int32)
        banned[: len(sampling.suppress)] = sampling.suppress
        write = self._appliance.write
        write("banned", banned, first=slot * BANNED)
        write("until", sampling.suppress_steps, first=slot)
        write("temperature", sampling.temperature, first=slot)
        write("top_k", sampling.top_k, first=slot)
        write("top_p", max(sampling.top_p, LEAST_TOP_P), first=slot)
        write("uniform", uniform(sampling.seed, 0), first=slot)
        self._place(slot, live=True)

    def _place(self, slot: int, *, live: bool) -> None:
        """Make the device's view of the slot the host's; steps leave one alone that is not live."""
        held = self._slots[slot]
        write = self._appliance.write
        write("positions", held.length if live else -1, first=slot)
        write("tokens", held.last_token or 0, first=slot)
        write("drawn", held.generated, first=slot)

    # Steps.

    def _step(self, bucket: int) -> dict[int, Choice]:
        armed = self._armed(bucket)
        if not armed:
            return {}
        if not all(self._slots[slot].unread for slot in armed):
            self._start(bucket, armed)
        if any(len(self._slots[slot].unread) == 1 and self._slots[slot].wants_more for slot in armed):
            self._start(bucket, armed)
        chosen = {slot: self._accept(slot, self._slots[slot].unread.popleft(), row=slot) for slot in armed}
        for slot in armed:
            if len(self._slots[slot].unread) > DEEPEST:
                self._slots[slot].unread.clear()
                self._place(slot, live=True)
        return chosen

    def _start(self, bucket: int, armed: Sequence[int]) -> None:
        """Start one step; it moves every armed slot."""
        choose = self._choose(armed)
        if choose == "sampled":
            draws = np.zeros(SLOTS, np.float32)
            for slot in armed:
                held = self._slots[slot]
                draws[slot] = uniform(held.sampling.seed, held.generated + len(held.unread))
            self._appliance.write("uniform", draws)
        (self._clock or self._appliance).decode(bucket, choose)
        step = self._land(armed, rows=bucket)
        for slot in armed:
            self._slots[slot].unread.append(step)

    def _land(self, slots: Sequence[int], *, rows: int) -> _Step:
        """Let the started work's tokens come back, and its logits where somebody wants probabilities."""
        self._turn = (self._turn + 1) % LANDINGS
        if (before := self._landed[self._turn]) is not None:
            before.settle()
        tokens, done = self._landings[self._turn]
        self._device.copy_out(self._appliance.buffers["chosen"], tokens)
        logits = None
        if any(self._slots[slot].sampling.top_logprobs is not None for slot in slots):
            logits = np.empty((rows, self._vocab), np.float32)
            self._device.copy_out(self._appliance.buffers["logits"], logits)
        done.record(self._device.stream)
        step = self._landed[self._turn] = _Step(tokens, logits, done)
        return step

    def _accept(self, slot: int, step: _Step, *, row: int, advance: int = 1) -> Choice:
        step.wait()
        token = int(step.tokens[row])
        if not 0 <= token < self._vocab:
            raise RuntimeError(f"slot {slot}: the device chose {token}, not in a vocabulary of {self._vocab}")
        held = self._slots[slot]
        held.length += advance
        held.written = held.length
        held.generated += 1
        held.last_token = token
        if step.logits is None or held.sampling.top_logprobs is None:
            return Choice(token=token)
        return _with_logprobs(step.logits[row], token, held.sampling.top_logprobs)

    def _choose(self, slots: Sequence[int]) -> Choose:
        return "sampled" if any(self._slots[slot].sampling.temperature > 0 for slot in slots) else "greedy"

    # Checks.

    def _armed(self, bucket: int) -> list[int]:
        return [slot for slot, held in enumerate(self._slots[:bucket]) if held.last_token is not None]

    def _require(self, slot: int, count: int) -> None:
        check_room(slot, self._slots[slot].length, count, self._limit)

    def _check(self, pieces: Sequence[Piece]) -> None:
        check_pieces(pieces, self._facts.slots, self._vocab)
        for piece in pieces:
            suppress = piece.sampling.suppress if piece.sampling else ()
            if len(suppress) > BANNED:
                raise UsageError(
                    f"suppress: {len(suppress)} tokens, but the device holds back at most {BANNED}"
                )
            self._require(piece.slot, len(piece.tokens))


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
    needed = plan.total_bytes + CONTEXT_BYTES
    free = available_memory() if device.facts.unified else device.free_memory()
    if needed > free:
        refusal = PreflightError(
            f"{plan.contract} with {plan.slots} slot(s) needs {needed:,} bytes on {device.facts.name}, "
            f"{free:,} are free; use fewer --slots, stop what else runs there, or choose a smaller model"
        )
        device.close(after=refusal)
        raise refusal
    return device
