"""What a worker of `tune` gets: one candidate, and the launch that it is timed by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from kernels.qwen3 import Sizes, kernel_specs
from kernels.tiles import Tiles
from lean.toolchain.chip.pace import Pace
from lean.toolchain.speed.contract_shapes import ContractShapes
from lean.toolchain.speed.operations import Operation, operations
from lean.toolchain.tune.plan import Candidate, kernel_of

Ask = Literal["try", "prove", "time"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One candidate, whose operation holds one launch, of the kernel in `cubin`; and what to `ask` of it.

    `try`: its first case, then its time. `prove`: all of its cases. `time`: its time alone.
    """

    operation: Operation
    cubin: bytes
    sizes: Sizes
    rope_theta: float
    seed: int
    pace: Pace
    ask: Ask = "try"


Run = Callable[[Job], dict[str, Any]]


def spoilt(result: dict[str, Any]) -> bool:
    """Whether the worker's device is not to be trusted any more."""
    return bool(result.get("device_failed"))


def operation_of(candidate: Candidate, shapes: ContractShapes) -> Operation:
    """The launch that a candidate is timed by: of one row, of 8, or of a whole prompt program."""
    name, path = kernel_of(candidate.key), candidate.key[0].split(".")[-1]
    rows = 1 if path == "one" else 8 if path == "rows" else int(path.removeprefix("prompt"))
    others = (spec for spec in kernel_specs(shapes.sizes, Tiles("any", {})) if spec.name != name)
    specs = (*others, candidate.spec)
    found, _ = operations(
        shapes.sizes, specs, shapes.position, decode=(rows,), prompts=(rows,), several_slots=True
    )
    whole = next(operation for operation in found if name in operation.kernels)
    return replace(whole, launches=tuple(pair for pair in whole.launches if pair[0].kernel == name))
