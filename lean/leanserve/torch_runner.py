"""The readable backend: the reference forward on any torch device, the CPU by default.

Why a stream's bits depend neither on its neighbours nor on how its prompt was cut: prefill always runs a tile
of 64 rows aligned to absolute position; decode always runs `bucket` rows; every operation but attention is
row by row; attention reads exactly the positions of one slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from lean.leanpack import Pack
from lean.leanserve.kv_cache import KVCache
from lean.leanserve.limits import check_bucket, check_pieces, check_slot
from lean.leanserve.model import Span, load_qwen3
from lean.leanserve.plan import BUCKETS, PREFILL_TILE, ComputeDtype
from lean.leanserve.region_times import HostClock, RegionLog
from lean.leanserve.runner import Choice, Cursor, Piece, RunnerFacts, Sampling
from lean.leanserve.sampler import choose
from lean.leanserve.start_up_pages import release_start_up_pages


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stream:
    """What a slot is doing. It is armed while it has a last token: chosen, and not in the cache yet."""

    sampling: Sampling = Sampling()  # noqa: RUF009  (frozen)
    generated: int = 0
    last_token: int | None = None


class TorchRunner:
    """`lean.leanserve.runner.Runner` from the operations' references.

    BF16 weights stay where the pack mapped them and are widened a block at a time inside each product;
    encoded ones are decoded when it loads, to FP32. `dtype` is the type of activations and of the cache. Sets
    the process's torch thread count and gives back the memory that importing torch left behind.
    """

    def __init__(
        self,
        pack: Pack,
        *,
        slots: int,
        threads: int,
        dtype: ComputeDtype = "float32",
        device: str = "cpu",
        split_k: int | None = None,
    ) -> None:
        started = perf_counter()
        assert slots in BUCKETS and threads > 0
        contract = pack.manifest.contract
        g, length = contract.model.geometry, contract.max_length
        self._device = torch.device(device)
        torch.set_num_threads(threads)
        with torch.inference_mode():
            self._model = load_qwen3(pack, self._device)
            self._cache = KVCache(
                g, slots=slots, length=length, dtype=getattr(torch, dtype), device=self._device
            )
        self._streams = [_Stream()] * slots
        self._clock: HostClock | None = None
        release_start_up_pages()
        self._facts = RunnerFacts(
            name="torch",
            device=str(self._device),
            compute_dtype=dtype,
            slots=slots,
            buckets=tuple(size for size in BUCKETS if size <= slots),
            max_length=length,
            vocab=g.vocab,
            prefill_tile=PREFILL_TILE,
            prefill_grain=PREFILL_TILE,
            threads=threads,
            operator_coverage=0.0,
            split_k=split_k,
            load_seconds=perf_counter() - started,
        )

    @property
    def facts(self) -> RunnerFacts:
        """What runs, fixed at construction."""
        return self._facts

    def prefill(self, pieces: Sequence[Piece]) -> list[Choice | None]:
        """Append pieces of prompts, one after another; see the protocol.

        Errors: `UsageError` for a wrong slot or token, `CapacityError` past a slot's length; nothing is
        written then, for any of them.
        """
        check_pieces(pieces, self._facts.slots, self._facts.vocab)
        for piece in pieces:
            self._cache.require(piece.slot, len(piece.tokens))
        with torch.inference_mode():
            choices = [self._prefill_one(piece) for piece in pieces]
        if self._clock:
            self._clock.prompt_ran()
        return choices

    def decode(self, bucket: int, steps: int) -> list[dict[int, Choice]]:
        """`steps` steps of `bucket` rows; see the protocol.

        Errors: `UsageError` for a wrong bucket, `CapacityError` when a slot cannot hold the steps; no slot
        has moved then.
        """
        check_bucket(bucket, self._facts.buckets)
        armed = [slot for slot in range(bucket) if self._streams[slot].last_token is not None]
        for slot in armed:
            self._cache.require(slot, steps)
        with torch.inference_mode():
            return [self._step(bucket, armed) for _ in range(steps)]

    def time_regions(self, log: RegionLog | None) -> None:
        """See the protocol."""
        self._clock = None if log is None else HostClock(log)

    def release(self, slot: int) -> None:
        """Empty the slot. Its rows stay and are never read."""
        check_slot(slot, self._facts.slots)
        self._cache.clear(slot)
        self._streams[slot] = _Stream()

    def snapshot(self, slot: int) -> Cursor:
        """Where the slot stands."""
        check_slot(slot, self._facts.slots)
        stream = self._streams[slot]
        return Cursor(
            length=self._cache.length(slot), generated=stream.generated, last_token=stream.last_token
        )

    def restore(self, slot: int, cursor: Cursor) -> None:
        """Back to a snapshot of this slot, with the settings of its last prefill.

        Errors: `UsageError` when the slot no longer holds the cursor's rows.
        """
        check_slot(slot, self._facts.slots)
        self._cache.rewind(slot, cursor.length)
        self._streams[slot] = replace(
            self._streams[slot], generated=cursor.generated, last_token=cursor.last_token
        )

    def _prefill_one(self, piece: Piece) -> Choice | None:
        slot, rest = piece.slot, piece.tokens
        while rest:
            room = PREFILL_TILE - self._cache.length(slot) % PREFILL_TILE
            last = self._prefill_tile(slot, rest[:room])
            rest = rest[room:]
        self._streams[slot] = _Stream(sampling=piece.sampling or Sampling())
        if piece.sampling is None:
            return None
        logits, greedy = self._model.predict(last)
        return self._choose(slot, logits[0], int(greedy[0]))

    def _prefill_tile(self, slot: int, tokens: Sequence[int]) -> Tensor:
        """Append tokens that fit the tile the cursor stands in; the hidden state [1, H] of the last one."""
        held = self._cache.length(slot) % PREFILL_TILE
        first = self._cache.length(slot) - held
        padding = PREFILL_TILE - held - len(tokens)
        span = Span(slot=slot, first=first, start=0, stop=PREFILL_TILE, held=held)
        places = torch.arange(first, first + PREFILL_TILE, device=self._device)  # [64]
        rows = torch.tensor([0] * held + [*tokens] + [0] * padding, device=self._device)  # [64]
        hidden = self._model.step(rows, places, [span], self._cache)  # [64, H]
        self._cache.advance(slot, len(tokens))
        last = held + len(tokens)
        return hidden[last - 1 : last]

    def _step(self, bucket: int, armed: Sequence[int]) -> dict[int, Choice]:
        if not armed:
            return {}
        tokens, positions = [0] * bucket, [0] * bucket
        for slot in armed:
            tokens[slot], positions[slot] = self._streams[slot].last_token or 0, self._cache.length(slot)
        spans = [Span(slot=slot, first=positions[slot], start=slot, stop=slot + 1) for slot in armed]
        rows, places = (torch.tensor(values, device=self._device) for values in (tokens, positions))
        mark = self._clock.begin() if self._clock else None
        hidden = self._model.step(rows, places, spans, self._cache, split_k=self._facts.split_k, mark=mark)
        logits, greedy = self._model.predict(hidden)
        if mark:
            mark("head")
        best = greedy.tolist()
        for slot in armed:
            self._cache.advance(slot, 1)
        sampled = any(self._streams[slot].sampling.temperature > 0 for slot in armed)
        chosen = {slot: self._choose(slot, logits[slot], best[slot]) for slot in armed}
        if self._clock:
            self._clock.end(bucket, "sampled" if sampled else "greedy")
        return chosen

    def _choose(self, slot: int, logits: Tensor, greedy: int) -> Choice:
        stream = self._streams[slot]
        choice = choose(logits, greedy, stream.sampling, stream.generated)
        self._streams[slot] = replace(stream, generated=stream.generated + 1, last_token=choice.token)
        return choice
