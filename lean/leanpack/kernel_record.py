"""One compiled kernel as the manifest has it, and what a sound record is. Imports nothing of `kernels`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lean.contracts import Encoding

ABI = "cutile_python_v2"
COMPILED = ("tilebc", "cubin", "sass")
ArrayDType = Literal["bf16", "f32", "i32", "u32", "e4m3"]

_TARGET = re.compile(r"sm_[1-9][0-9]{1,3}")
_CPU = re.compile(r"cpu-[A-Za-z0-9_]+(-[A-Za-z0-9]+)?")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}(\.[a-z0-9_]{1,64}){0,3}")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_FUNCTION = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*:[a-z][a-z0-9_]*")
# What CUDA launches at most in x, y and z (CUDA C++ Programming Guide, "Technical Specifications").
_GRID_LIMITS = (2**31 - 1, 65_535, 65_535)
_MAX_RANK = 8
_MAX_SIZE = 2**31 - 1  # shapes and strides are int32 in the calling convention
_MAX_BYTES = 1 << 48
_MAX_REGISTERS = 255  # a thread cannot address more


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayRecord:
    """One array argument: row-major, contiguous, of exactly this shape.

    `repeated`: all of its first dimension is one row, in memory once, with a stride of 0.
    """

    name: str
    dtype: ArrayDType
    shape: tuple[int, ...]
    repeated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantRecord:
    """One number the kernel was compiled with; an integer stays an integer."""

    name: str
    value: int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecord:
    """One compiled kernel: its files, how it is launched, and what it costs.

    `function` is where its source lies, `module:name` below `kernels`. `arrays`, in this order, are the
    arguments of the calling convention `abi`; `constants` are compiled in and no argument. `grid` is in tile
    blocks. `occupancy` (blocks a multiprocessor) and `warps` were hints to the compiler. Registers are per
    thread, shared memory in bytes per block, stack in bytes per thread; spills are counted instructions.
    """

    name: str
    operation: str
    function: str
    symbol: str
    tilebc: str
    cubin: str
    sass: str
    abi: str
    grid: tuple[int, ...]
    arrays: tuple[ArrayRecord, ...]
    constants: tuple[ConstantRecord, ...]
    occupancy: int | None
    warps: int | None
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_stores: int
    spill_loads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRecord:
    """What the pack brings for one chip. `torch`: no kernels of ours, the reference forward runs it."""

    name: str
    runner: Literal["torch", "cuda"]
    encoding: Encoding
    kernels: tuple[KernelRecord, ...]


def compiled_name(target: str, kernel: str, kind: str) -> str:
    """Where a kernel's `kind` (tilebc, cubin or sass) lies in the pack."""
    return f"targets/{target}/{kernel}.{kind}"


def target_problems(targets: tuple[TargetRecord, ...], encoding: Encoding) -> list[str]:
    """What is wrong with the targets of a pack in this encoding, first things first; empty for sound ones."""
    names = [target.name for target in targets]
    if not names or len(set(names)) != len(names):
        return ["targets: expected at least one, none of them twice"]
    return [f"targets: {target.name[:40]}: {p}" for target in targets for p in _target(target, encoding)]


def _target(target: TargetRecord, encoding: Encoding) -> Iterator[str]:
    form = _TARGET if target.runner == "cuda" else _CPU
    if not form.fullmatch(target.name):
        yield f"name: no target that runner {target.runner} has"
        return
    if target.encoding != encoding:
        yield f"encoding: expected {encoding!r}, got {target.encoding!r}"
    if bool(target.kernels) != (target.runner == "cuda"):
        yield f"kernels: {len(target.kernels)} of them for runner {target.runner}"
    names = [kernel.name for kernel in target.kernels]
    if len(set(names)) != len(names):
        yield "kernels: a name stands twice"
    for kernel in target.kernels:
        yield from (f"kernel {kernel.name[:80]!r}: {problem}" for problem in _kernel(target.name, kernel))


def _kernel(target: str, kernel: KernelRecord) -> Iterator[str]:
    if not _NAME.fullmatch(kernel.name):
        yield "name: expected lower-case words joined by dots"
        return
    for kind in COMPILED:
        expected = compiled_name(target, kernel.name, kind)
        if getattr(kernel, kind) != expected:
            yield f"{kind}: expected {expected!r}, got {getattr(kernel, kind)[:200]!r}"
    arrays, constants = ([item.name for item in items] for items in (kernel.arrays, kernel.constants))
    grid = kernel.grid
    fits = len(grid) == 3 and all(0 < n <= most for n, most in zip(grid, _GRID_LIMITS, strict=True))
    checks = {
        "operation: expected a plain name": not _WORD.fullmatch(kernel.operation),
        "function: expected module:name": not _FUNCTION.fullmatch(kernel.function),
        f"symbol: expected {_symbol(kernel.name)!r}": kernel.symbol != _symbol(kernel.name),
        f"abi: expected {ABI}, got {kernel.abi[:40]!r}": kernel.abi != ABI,
        f"grid: expected three counts a launch can have, got {list(grid)[:8]}": not fits,
        "arrays: expected at least one, with plain names": not _words(arrays),
        "constants: expected plain names": not _words(constants) and bool(constants),
        "arrays, constants: a name stands twice": len({*arrays, *constants}) != len(arrays + constants),
        "occupancy: expected 1 to 32": not (kernel.occupancy is None or 1 <= kernel.occupancy <= 32),
        "warps: expected 1 to 64": not (kernel.warps is None or 1 <= kernel.warps <= 64),
        f"registers: expected 1 to {_MAX_REGISTERS}": not 1 <= kernel.registers <= _MAX_REGISTERS,
        "shared_bytes: negative": kernel.shared_bytes < 0,
        "stack_bytes: negative": kernel.stack_bytes < 0,
        "spill_stores, spill_loads: negative": min(kernel.spill_stores, kernel.spill_loads) < 0,
    }
    yield from (problem for problem, wrong in checks.items() if wrong)
    for array in kernel.arrays:
        if not 1 <= len(array.shape) <= _MAX_RANK or not all(1 <= n <= _MAX_SIZE for n in array.shape):
            yield f"arrays: {array.name[:40]}: shape: expected 1 to {_MAX_RANK} positive sizes"
        elif math.prod(array.shape) > _MAX_BYTES:
            yield f"arrays: {array.name[:40]}: shape: {list(array.shape)} is more than any device holds"


def _symbol(name: str) -> str:
    return name.replace(".", "_")


def _words(names: list[str]) -> bool:
    return bool(names) and all(_WORD.fullmatch(name) for name in names)
