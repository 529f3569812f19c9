"""What the projections added to the residual stream are proved on: the attention's output, and down."""

from __future__ import annotations

import math
from collections.abc import Iterator

from kernels.case import (
    BF16,
    TENSOR_CORE,
    TENSOR_F32,
    VECTOR_F32,
    Case,
    Data,
    Draw,
    Expected,
    MachineCode,
    Tolerance,
    arrays,
    block_squares,
    kernel_function,
    product,
    total_bytes,
)
from kernels.encodings import FOUR_BIT
from kernels.encodings.case import encoding_of, matrix, one_row_opcodes, one_row_tolerance, shape_of, weight
from kernels.spec import Array, KernelSpec

FOUR_BIT_STREAM = Tolerance(
    norm=2.0**-7,
    element=2.0**-5,
    reason="the change is off by up to 2^-8 of its size (`FOUR_PRODUCTS`), then rounded to bf16",
)
FEW_SQUARES = Tolerance(
    norm=2.0**-3,
    element=2.0**-4,
    reason="a sum of four squares, where all four may have nearly cancelled, is off by far more of itself",
)


def cases(spec: KernelSpec) -> tuple[Case, ...]:
    """The stream is written in place; a row of it is zero."""
    if "encoded" in kernel_function(spec):
        return tuple(_encoded(spec))
    return tuple(_one(spec) if kernel_function(spec) == "linear_residual" else _several(spec))


def machine_code(spec: KernelSpec, target: str) -> MachineCode:
    """Wide loads for the matrix-vector product; tensor core and TMA for several rows."""
    if kernel_function(spec) == "linear_residual_encoded":
        return MachineCode(opcodes=one_row_opcodes(spec), access_bytes=8)
    if kernel_function(spec) == "linear_residual":
        return MachineCode(opcodes=("FFMA",), access_bytes=8)
    return MachineCode(opcodes=(TENSOR_CORE[target],), bulk=True)


def _one(spec: KernelSpec) -> Iterator[Case]:
    a = arrays(spec)
    rows, width = a["weight"].shape

    def data(draw: Draw) -> Data:
        return {
            "x": draw.normal(a["x"]),
            "weight": draw.weight(a["weight"]),
            "residual": draw.stream(1, rows),
        }

    def expected(given: Data) -> dict[str, Expected]:
        stream = given["residual"].double() + product(given["x"], given["weight"])
        return {
            "residual": Expected(value=stream, tolerance=VECTOR_F32),
            "hidden": Expected(value=stream, tolerance=BF16),
        }

    yield Case(
        name="random",
        data=data,
        expected=expected,
        bytes_moved=total_bytes(spec, twice=("residual",)),
        flops=2 * rows * width,
    )


def _several(spec: KernelSpec) -> Iterator[Case]:
    a = arrays(spec)
    t, width, rows = a["x"].shape[0], math.prod(a["x"].shape[1:]), a["weight"].shape[0]

    def data(draw: Draw) -> Data:
        x = draw.normal(a["x"])
        x[t // 2] = 0.0
        return {
            "x": x,
            "weight": draw.weight(a["weight"]),
            "residual": draw.stream(t, rows),
            "norm": draw.gain(rows),
        }

    def expected(given: Data) -> dict[str, Expected]:
        stream = given["residual"].double() + product(given["x"], given["weight"])
        return {
            "residual": Expected(value=stream, tolerance=TENSOR_F32),
            "z": Expected(value=stream * given["norm"].double(), tolerance=BF16),
            "squares": Expected(value=block_squares(stream, a["squares"].shape[0]), tolerance=TENSOR_F32),
        }

    yield Case(
        name="random",
        data=data,
        expected=expected,
        bytes_moved=total_bytes(spec, twice=("residual",)),
        flops=2 * t * rows * width,
        rows={"x": 0, "residual": 0, "z": 0, "squares": 1},
        kept=(0, t // 2 - 1, t - 1),
    )


def _encoded(spec: KernelSpec) -> Iterator[Case]:
    a = arrays(spec)
    t, (rows, width) = a["residual"].shape[0], shape_of(spec)
    loose = t == 1 and encoding_of(spec) in FOUR_BIT
    exact = TENSOR_F32 if t > 1 else one_row_tolerance(spec)

    def data(draw: Draw) -> Data:
        x = draw.normal(Array(name="x", dtype="bf16", shape=a["x"].stored))
        if t > 1:
            x[t // 2] = 0.0
        stream, norm = draw.stream(t, rows), draw.gain(rows)
        return {"x": x, "residual": stream, "norm": norm, **weight(draw, spec)}

    def expected(given: Data) -> dict[str, Expected]:
        change = product(given["x"].reshape(t, width), matrix(spec, given)) * given["scale"].double()
        stream = given["residual"].double() + change
        sums = block_squares(stream, a["squares"].shape[0])
        return {
            "residual": Expected(value=stream, tolerance=exact),
            "z": Expected(
                value=stream * given["norm"].double(), tolerance=FOUR_BIT_STREAM if loose else BF16
            ),
            "squares": Expected(value=sums, tolerance=FEW_SQUARES if loose else TENSOR_F32),
        }

    yield Case(
        name="random",
        data=data,
        expected=expected,
        bytes_moved=total_bytes(spec, twice=("residual",)),
        flops=2 * t * rows * width,
        rows={"x": 0, "residual": 0, "z": 0, "squares": 1} if t > 1 else {},
        kept=(0, t // 2 - 1, t - 1) if t > 1 else (),
    )
