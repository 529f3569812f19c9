"""What the split output projection is proved on: each bit, against the reference in the same order."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from kernels.case import (
    EXACT,
    TENSOR_F32,
    Case,
    Data,
    Draw,
    Expected,
    MachineCode,
    arrays,
    block_squares,
    kernel_function,
    total_bytes,
)
from kernels.output_split.reference import in_pairs, left_to_right
from kernels.spec import KernelSpec


def cases(spec: KernelSpec) -> tuple[Case, ...]:
    """Several rows have one of zeros among them."""
    return tuple(_products(spec) if kernel_function(spec) == "split_products" else _sum(spec))


def machine_code(spec: KernelSpec, target: str) -> MachineCode:
    """Weights come 16 bytes a thread; partial sums are only added."""
    if kernel_function(spec) == "split_products":
        return MachineCode(opcodes=("FMUL", "FADD"), access_bytes=16)
    return MachineCode(opcodes=("FADD",))


def _products(spec: KernelSpec) -> Iterator[Case]:
    a = arrays(spec)
    t = a["x"].shape[0]
    n, *slots = a["weight"].shape

    def data(draw: Draw) -> Data:
        x = draw.normal(a["x"])
        if t > 1:
            x[t // 2] = 0.0
        return {"x": x, "weight": draw.weight(a["weight"])}

    def expected(given: Data) -> dict[str, Expected]:
        rows = [in_pairs(row[None].float() * given["weight"].float()) for row in given["x"]]  # [N, heads, S]
        partials = torch.stack(rows).permute(2, 3, 0, 1)
        return {"partials": Expected(value=partials.double().contiguous(), tolerance=EXACT)}

    yield Case(
        name="random",
        data=data,
        expected=expected,
        bytes_moved=total_bytes(spec),
        flops=2 * t * n * math.prod(slots),
        rows={"x": 0, "partials": 2} if t > 1 else {},
        kept=(0, t // 2 - 1, t - 1) if t > 1 else (),
    )


def _sum(spec: KernelSpec) -> Iterator[Case]:
    a = arrays(spec)
    slots, t, n = a["partials"].shape

    def data(draw: Draw) -> Data:
        given = {"partials": draw.normal(a["partials"]), "residual": draw.stream(t, n)}
        if t > 1:
            given["partials"][:, t // 2] = 0.0
            given["norm"] = draw.gain(n)
        return given

    def expected(given: Data) -> dict[str, Expected]:
        stream = given["residual"] + left_to_right(given["partials"])
        found = {"residual": Expected(value=stream.double(), tolerance=EXACT)}
        if t == 1:
            return found | {"hidden": Expected(value=stream.bfloat16().double(), tolerance=EXACT)}
        z = (stream * given["norm"].float()).bfloat16()
        squares = block_squares(stream.double(), a["squares"].shape[0])
        return found | {
            "z": Expected(value=z.double(), tolerance=EXACT),
            "squares": Expected(value=squares, tolerance=TENSOR_F32),
        }

    yield Case(
        name="random",
        data=data,
        expected=expected,
        bytes_moved=total_bytes(spec, twice=("residual",)),
        flops=t * n * slots,
        rows={"partials": 1, "residual": 0, "z": 0, "squares": 1} if t > 1 else {},
        kept=(0, t // 2 - 1, t - 1) if t > 1 else (),
    )
