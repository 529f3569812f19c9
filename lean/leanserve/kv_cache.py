"""The static key-value cache: one contiguous stretch per slot, sized for the longest bucket, never moved."""

from __future__ import annotations

import torch
from torch import Tensor

from lean.contracts import Geometry
from lean.leanserve.limits import check_rewind, check_room
from lean.leanserve.plan import padded_length


class KVCache:
    """Keys and values of `slots` streams of up to `length` positions, and how far each stream has come.

    `dtype` is the element type, `nbytes` the size of the whole cache once every page is resident.

    A slot's rows beyond its length are never read, so whatever they hold (stale rows, NaN) reaches nobody.
    Pages become resident when they are first written.
    """

    def __init__(
        self, geometry: Geometry, *, slots: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        g = geometry
        shape = (slots, g.layers, 2, g.kv_heads, padded_length(length), g.head_dim)
        rows = torch.empty(shape, dtype=dtype, device=device)
        self.dtype, self.nbytes = dtype, rows.nbytes
        self._layers = [[(keys, values) for keys, values in slot] for slot in rows]  # each [Hkv, length, D]
        self._limit = length
        self._lengths = [0] * slots
        self._written = [0] * slots

    def length(self, slot: int) -> int:
        """Positions the slot holds."""
        return self._lengths[slot]

    def require(self, slot: int, count: int) -> None:
        """Errors: `CapacityError` when `count` more positions do not fit the slot. Changes nothing."""
        check_room(slot, self._lengths[slot], count, self._limit)

    def append(self, slot: int, layer: int, first: int, keys: Tensor, values: Tensor) -> None:
        """Write rows [T, Hkv, D] of one layer from position `first` on. `advance` makes them count."""
        count = keys.shape[0]
        held_keys, held_values = self._layers[slot][layer]
        held_keys.narrow(1, first, count).copy_(keys.transpose(0, 1))
        held_values.narrow(1, first, count).copy_(values.transpose(0, 1))

    def read(self, slot: int, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of positions 0 .. end - 1, each a view [Hkv, end, D]."""
        keys, values = self._layers[slot][layer]
        return keys.narrow(1, 0, end), values.narrow(1, 0, end)

    def advance(self, slot: int, count: int) -> None:
        """Count `count` rows just written to every layer as held."""
        self._lengths[slot] += count
        self._written[slot] = self._lengths[slot]

    def rewind(self, slot: int, length: int) -> None:
        """Let the slot hold `length` positions, in O(1); rows beyond stay where they are until overwritten.

        Errors: `UsageError` when fewer rows were written since the slot was last cleared or overwritten.
        """
        check_rewind(slot, length, self._written[slot])
        self._lengths[slot] = length

    def clear(self, slot: int) -> None:
        """Empty the slot."""
        self._lengths[slot] = self._written[slot] = 0
