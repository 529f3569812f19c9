"""The arrays of one launch on the device: inputs and poison, each array between guard bands."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kernels.case import DTYPES
from kernels.spec import Array, KernelSpec

GUARD = 4096  # bytes before and behind every array


class Memory:
    """The arrays of one launch, each between guard bands."""

    def __init__(
        self, spec: KernelSpec, data: Mapping[str, Tensor], poison: int, device: torch.device
    ) -> None:
        self.poison = poison
        self._arrays = {array.name: array for array in spec.arrays}
        self._initial = {
            array.name: _storage(array, data.get(array.name), poison, device) for array in spec.arrays
        }
        self._storage = {name: storage.clone() for name, storage in self._initial.items()}

    def tensors(self) -> list[Tensor]:
        """What the kernel gets."""
        return [self.array(name) for name in self._arrays]

    def array(self, name: str) -> Tensor:
        """What is in one array now."""
        return _view(self._arrays[name], self._storage[name])

    def guards_hold(self, name: str) -> bool:
        """Whether nothing was written before or behind the array."""
        storage = self._storage[name]
        return bool((storage[:GUARD] == self.poison).all() and (storage[-GUARD:] == self.poison).all())

    def changed(self, name: str) -> Tensor:
        """Which elements have other bits than before the launch."""
        return bits(self.array(name)) != bits(_view(self._arrays[name], self._initial[name]))


def bits(tensor: Tensor) -> Tensor:
    """Its elements as integers, so that NaN equals itself."""
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])


def _storage(array: Array, value: Tensor | None, poison: int, device: torch.device) -> Tensor:
    storage = torch.full((array.nbytes + 2 * GUARD,), poison, dtype=torch.uint8, device=device)
    if value is not None:
        if value.shape != array.stored or value.dtype != DTYPES[array.dtype]:
            raise ValueError(f"{array.name}: {value.dtype} {list(value.shape)}; expected {array}")
        _view(array, storage).copy_(value)
    return storage


def _view(array: Array, storage: Tensor) -> Tensor:
    return storage[GUARD : GUARD + array.nbytes].view(DTYPES[array.dtype]).view(array.stored)
