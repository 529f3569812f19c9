"""What a compiled kernel is, as data: its arrays with static shapes, its constants, its grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

DType = Literal["bf16", "f32", "i32", "u32", "e4m3"]
DTYPE_BYTES: dict[DType, int] = {"bf16": 2, "f32": 4, "i32": 4, "u32": 4, "e4m3": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """One array argument, row-major and contiguous; a kernel is compiled for exactly this shape.

    `repeated`: all of its first dimension is one and the same row, in memory once.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    repeated: bool = False

    @property
    def stored(self) -> tuple[int, ...]:
        """Its shape in memory: a repeated row is there once."""
        return (1, *self.shape[1:]) if self.repeated else self.shape

    @property
    def nbytes(self) -> int:
        """Bytes it occupies."""
        return math.prod(self.stored) * DTYPE_BYTES[self.dtype]

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements from one index to the next in each dimension, the last one 1."""
        strides = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        return (0, *strides[1:]) if self.repeated else tuple(strides)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec:
    """One kernel to compile.

    `function` is `module:name` below `kernels`. `constants` follow the arrays in the kernel's signature, in
    this order. `grid` is in tile blocks; a launch may ask for another one. `occupancy` (blocks per
    multiprocessor) and `warps` (of a warp-specialised kernel) are hints to the compiler. `spills`: its tuning
    entry knows that registers do not fit and takes it as it is.
    """

    name: str
    operation: str
    function: str
    arrays: tuple[Array, ...]
    constants: tuple[tuple[str, int | float], ...]
    grid: tuple[int, int, int]
    occupancy: int | None = None
    warps: int | None = None
    spills: bool = False

    @property
    def symbol(self) -> str:
        """The kernel's name in its cubin."""
        return self.name.replace(".", "_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch of a program: the kernel's name, the buffer each of its arrays is bound to, and its grid.

    A `grid` of None is the kernel's own.
    """

    kernel: str
    buffers: tuple[str, ...]
    grid: tuple[int, int, int] | None = None


def bf16(name: str, *shape: int, repeated: bool = False) -> Array:
    """A bf16 array."""
    return Array(name=name, dtype="bf16", shape=shape, repeated=repeated)


def f32(name: str, *shape: int) -> Array:
    """An f32 array."""
    return Array(name=name, dtype="f32", shape=shape)


def i32(name: str, *shape: int) -> Array:
    """An int32 array."""
    return Array(name=name, dtype="i32", shape=shape)


def u32(name: str, *shape: int) -> Array:
    """A uint32 array."""
    return Array(name=name, dtype="u32", shape=shape)


def e4m3(name: str, *shape: int) -> Array:
    """An array of FP8, four bits of exponent and three of fraction, no infinities."""
    return Array(name=name, dtype="e4m3", shape=shape)
