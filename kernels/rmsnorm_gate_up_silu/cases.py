"""What the feed-forward block's first half is proved on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from torch import Tensor

from kernels.case import (
    BF16,
    TENSOR_CORE,
    Case,
    Data,
    Draw,
    Expected,
    MachineCode,
    Tolerance,
    arrays,
    behind_stream,
    constant,
    inverse_rms,
    kernel_function,
    product,
    total_bytes,
)
from kernels.encodings import FOUR_BIT
from kernels.encodings.case import encoding_of, matrix, one_row_opcodes, weight
from kernels.spec import KernelSpec

FOUR_BIT_GATE = Tolerance(
    norm=2.0**-7,
    element=2.0**-5,
    reason="gate and up are each off by up to 2^-8 of their size (`FOUR_PRODUCTS`), then rounded to bf16",
)


def cases(spec: KernelSpec) -> tuple[Case, ...]:
    """`steep` gates run far past where exp overflows in f32, on both sides."""
    if "encoded" in kernel_function(spec):
        return tuple(_encoded(spec))
    return tuple(_one(spec) if kernel_function(spec) == "gate_up_silu" else _scaled(spec))


def machine_code(spec: KernelSpec, target: str) -> MachineCode:
    """Wide loads for the matrix-vector product; tensor core and TMA for several rows."""
    if kernel_function(spec) == "gate_up_silu_encoded":
        return MachineCode(opcodes=(*one_row_opcodes(spec), "MUFU.RSQ", "MUFU.EX2"), access_bytes=8)
    if kernel_function(spec) == "gate_up_silu":
        return MachineCode(opcodes=("FFMA", "MUFU.RSQ", "MUFU.EX2"), access_bytes=8)
    return MachineCode(opcodes=(TENSOR_CORE[target], "MUFU.RSQ", "MUFU.EX2"), bulk=True)


def silu_times(both: Tensor) -> Tensor:
    """silu(gate) · up of [T, 2 I], gate first, in FP64."""
    gate, up = both.double().chunk(2, dim=-1)
    return gate * gate.sigmoid() * up


def _one(spec: KernelSpec) -> Iterator[Case]:
    a, eps = arrays(spec), constant(spec, "EPS")
    rows, hidden = a["weight"].shape

    def data(draw: Draw, steep: float) -> Data:
        return {
            "hidden": draw.stream(1, hidden).bfloat16(),
            "norm": draw.gain(hidden),
            "weight": draw.weight(a["weight"], steep),
        }

    def expected(given: Data) -> dict[str, Expected]:
        x = given["hidden"].double()
        normed = x * given["norm"].double() * inverse_rms(x.square().mean(-1, keepdim=True), eps)
        return {"out": Expected(value=silu_times(product(normed, given["weight"])), tolerance=BF16)}

    for name, steep in (("random", 1.0), ("steep", 64.0)):
        yield Case(
            name=name,
            data=partial(data, steep=steep),
            expected=expected,
            bytes_moved=total_bytes(spec),
            flops=2 * rows * hidden,
        )


def _scaled(spec: KernelSpec) -> Iterator[Case]:
    a, eps = arrays(spec), constant(spec, "EPS")
    t, hidden, rows = a["z"].shape[0], math.prod(a["z"].shape[1:]), a["weight"].shape[0]
    parts = a["squares"].shape[0]

    def data(draw: Draw, steep: float) -> Data:
        stream = draw.stream(t, hidden)
        stream[t // 2] = 0.0
        z, squares = behind_stream(stream, draw.gain(hidden), parts)
        return {"z": z.view(a["z"].shape), "squares": squares, "weight": draw.weight(a["weight"], steep)}

    def expected(given: Data) -> dict[str, Expected]:
        scale = inverse_rms(given["squares"].double().sum(0) / hidden, eps).unsqueeze(1)  # [T, 1]
        both = product(given["z"], given["weight"]) * scale
        return {"out": Expected(value=silu_times(both), tolerance=BF16)}

    for name, steep in (("random", 1.0), ("steep", 64.0)):
        yield Case(
            name=name,
            data=partial(data, steep=steep),
            expected=expected,
            bytes_moved=total_bytes(spec),
            flops=2 * t * rows * hidden,
            rows={"z": 0, "squares": 1, "out": 0},
            kept=(0, t // 2 - 1, t - 1),
        )


def _encoded(spec: KernelSpec) -> Iterator[Case]:
    a, eps, hidden = arrays(spec), constant(spec, "EPS"), int(constant(spec, "HIDDEN"))
    t, rows, parts = a["out"].shape[0], a["codes"].shape[0], a["squares"].shape[0]
    loose = t == 1 and encoding_of(spec) in FOUR_BIT

    def data(draw: Draw, steep: float) -> Data:
        stream = draw.stream(t, hidden)
        if t > 1:
            stream[t // 2] = 0.0
        z, squares = behind_stream(stream, draw.gain(hidden), parts)
        return {"z": z.view(a["z"].stored), "squares": squares, **weight(draw, spec, steep)}

    def expected(given: Data) -> dict[str, Expected]:
        norm = inverse_rms(given["squares"].double().sum(0) / hidden, eps).unsqueeze(1)  # [T, 1]
        both = product(given["z"].reshape(t, hidden), matrix(spec, given)) * given["scale"].double() * norm
        return {"out": Expected(value=silu_times(both), tolerance=FOUR_BIT_GATE if loose else BF16)}

    for name, steep in (("random", 1.0),) if loose else (("random", 1.0), ("steep", 64.0)):
        yield Case(
            name=name,
            data=partial(data, steep=steep),
            expected=expected,
            bytes_moved=total_bytes(spec),
            flops=2 * t * rows * hidden,
            rows={"z": 0, "squares": 1, "out": 0} if t > 1 else {},
            kept=(0, t // 2 - 1, t - 1) if t > 1 else (),
        )
