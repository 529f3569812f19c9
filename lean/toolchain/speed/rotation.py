"""An operation's buffers on the device, so many copies of what a step finds in memory that no cache helps.

Every launch of a graph takes the next copy of its weights, or of its cached keys and values; one round of all
copies reads `least_bytes` or more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kernels.attention.reference import rotary_table
from kernels.case import DTYPES, Draw
from kernels.qwen3 import HEAD_DIM, PROMPT_GROUP, SLOTS, Sizes
from kernels.spec import Array
from lean.errors import GateError
from lean.toolchain.chip.machine import Placed
from lean.toolchain.speed.operations import Operation, is_rotated, prompt_groups

CACHES = 3  # one round of all copies reads at least so many times the largest cache
LAUNCHES = 32  # at least, in a graph: fewer would take less time than the host needs to start it
_CACHE = ("keys.", "values.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """`copies` of an operation's buffers; `bytes` are those that one round of them reads of memory.

    `pointers`: where each copy's buffers lie. `held` keeps them there. `rounds`: of all copies, in a graph.
    """

    copies: int
    rounds: int
    bytes: int
    pointers: tuple[dict[str, int], ...]
    held: tuple[Tensor, ...]

    def launches(self, operation: Operation, loaded: dict[str, Any]) -> list[Placed]:
        """Every launch of one graph, `copies` times `rounds` operations."""
        return [
            Placed(
                kernel=loaded[launch.kernel],
                spec=spec,
                grid=launch.grid or spec.grid,
                pointers=tuple(where[name] for name in launch.buffers),
            )
            for where in self.pointers * self.rounds
            for launch, spec in operation.launches
        ]


def copies_for(touched_bytes: int, least_bytes: int) -> tuple[int, int]:
    """Copies that together have `least_bytes`, and rounds of them that fill a graph."""
    copies = max(1, math.ceil(least_bytes / touched_bytes))
    large = touched_bytes >= least_bytes  # it drives out its own beginning
    return copies, math.ceil((4 if large else LAUNCHES) / copies)


def rotate(
    operation: Operation, sizes: Sizes, theta: float, draw: Draw, device: torch.device, least_bytes: int
) -> Rotation:
    """Make the buffers and fill them. Errors: `GateError` for an operation without any that rotates."""
    buffers = operation.buffers()
    rotated = [name for name in buffers if is_rotated(sizes, name)]
    touched = sum(_touched(operation, name, buffers[name]) for name in rotated)
    if not touched:
        raise GateError(f"{operation.label}: reads neither weights nor a cache, so nothing in it can rotate")
    copies, rounds = copies_for(touched, least_bytes)
    held: list[Tensor] = []
    pointers: list[dict[str, int]] = [{} for _ in range(copies)]
    for name, array in buffers.items():
        first = _filled(name, array, operation, sizes, theta, draw)
        if name not in rotated:
            held.append(first)
            for where in pointers:
                where[name] = first.data_ptr()
            continue
        stride = _stride(operation, name, array)
        storage = torch.empty((copies - 1) * stride + array.nbytes, dtype=torch.uint8, device=device)
        flat = first.view(-1).view(torch.uint8)
        for copy, where in enumerate(pointers):
            start = copy * stride
            storage[start : start + array.nbytes] = flat
            where[name] = storage.data_ptr() + start
        held.append(storage)
    return Rotation(
        copies=copies, rounds=rounds, bytes=copies * touched, pointers=tuple(pointers), held=tuple(held)
    )


def _live_slots(operation: Operation, length: int) -> int:
    room = length // PROMPT_GROUP * PROMPT_GROUP
    return math.ceil(operation.rows / room) if operation.path.startswith("prompt") else operation.rows


def _touched(operation: Operation, name: str, array: Array) -> int:
    """Bytes of it that one launch reads."""
    if not name.startswith(_CACHE):
        return int(array.nbytes)
    _, heads, _, dim = array.shape
    each = 1 if operation.path.startswith("prompt") else operation.position + 1
    return int(operation.rows * each * heads * dim * 2)


def _stride(operation: Operation, name: str, array: Array) -> int:
    """Bytes from one copy to the next: of a cache, the slots that are not live lie over one another."""
    if name.startswith(_CACHE):
        return int(array.nbytes // array.shape[0] * _live_slots(operation, array.shape[2]))
    return -(-int(array.nbytes) // 4096) * 4096


def _filled(name: str, array: Array, operation: Operation, sizes: Sizes, theta: float, draw: Draw) -> Tensor:
    """What stands in a buffer: random numbers of a usual size, and a state that all live rows are in."""
    if array.repeated:  # its one row is in memory once
        array = replace(array, shape=(1, *array.shape[1:]), repeated=False)
    integers = _state(name, array, operation, sizes)
    if integers is not None:
        return torch.tensor(integers, dtype=DTYPES[array.dtype], device=draw.device).view(array.shape)
    made: Tensor
    if name == "rotary":
        made = rotary_table(HEAD_DIM, theta, array.shape[0]).to(draw.device)
    elif name.endswith("norm"):
        made = draw.gain(array.shape[0]).to(DTYPES[array.dtype])
    elif name == "squares":
        made = torch.full(array.shape, sizes.hidden / array.shape[0], device=draw.device)
    elif array.dtype in ("bf16", "f32", "e4m3"):
        weight = is_rotated(sizes, name) and not name.startswith(_CACHE)
        made = draw.weight(array) if weight and array.dtype != "e4m3" else draw.normal(array)
    else:  # packed codes: any bits are some number
        bits = torch.empty(array.nbytes, dtype=torch.uint8, device=draw.device).random_(0, 120)
        made = bits.view(DTYPES[array.dtype]).view(array.shape)
    return made


def _state(name: str, array: Array, operation: Operation, sizes: Sizes) -> Sequence[Any] | None:
    live = operation.rows if not operation.path.startswith("prompt") else 0
    match name:
        case "positions":
            return [operation.position] * live + [-1] * (SLOTS - live)
        case "rows":
            return list(range(SLOTS))
        case "groups":
            return prompt_groups(sizes, operation.rows)
        case "banned":
            return [[-1] * array.shape[1]] * array.shape[0]
        case "tokens" | "drawn" | "until" | "chosen" | "arrived" | "where":
            return [0] * math.prod(array.shape)
    return None
