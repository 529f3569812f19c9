"""What the projections of a normed row are proved on: query, key and value, and the head."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

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
    arrays,
    behind_stream,
    constant,
    inverse_rms,
    kernel_function,
    product,
    total_bytes,
)
from kernels.encodings.case import matrix, one_row_opcodes, one_row_tolerance, weight
from kernels.spec import KernelSpec


def cases(spec: KernelSpec) -> tuple[Case, ...]:
    """A row of zeros is there for the norm's epsilon; every weight and every activation is read."""
    if "encoded" in kernel_function(spec):
        return tuple(_encoded(spec))
    return tuple(_one(spec) if kernel_function(spec) == "rmsnorm_linear" else _scaled(spec))


def machine_code(spec: KernelSpec, target: str) -> MachineCode:
    """Wide loads for the matrix-vector product; tensor core and TMA for several rows."""
    if kernel_function(spec) == "scaled_linear_encoded":
        return MachineCode(opcodes=(*one_row_opcodes(spec), "MUFU.RSQ"), access_bytes=8)
    if kernel_function(spec) == "rmsnorm_linear":
        return MachineCode(opcodes=("FFMA", "MUFU.RSQ"), access_bytes=8)
    return MachineCode(opcodes=(TENSOR_CORE[target], "MUFU.RSQ"), bulk=True)


def _one(spec: KernelSpec) -> Iterator[Case]:
    a, eps = arrays(spec), constant(spec, "EPS")
    rows, hidden = a["weight"].shape

    def data(draw: Draw, scale: float) -> Data:
        return {
            "hidden": (draw.stream(1, hidden) * scale).bfloat16(),
            "norm": draw.gain(hidden),
            "weight": draw.weight(a["weight"]),
        }

    def expected(given: Data) -> dict[str, Expected]:
        x = given["hidden"].double()
        normed = x * given["norm"].double() * inverse_rms(x.square().mean(-1, keepdim=True), eps)
        return {"out": Expected(value=product(normed, given["weight"]), tolerance=VECTOR_F32)}

    for name, scale in (("random", 1.0), ("small", 1e-3), ("zero", 0.0)):
        yield Case(
            name=name,
            data=partial(data, scale=scale),
            expected=expected,
            bytes_moved=total_bytes(spec),
            flops=2 * rows * hidden,
        )


def _scaled(spec: KernelSpec) -> Iterator[Case]:
    a, eps = arrays(spec), constant(spec, "EPS")
    t, hidden, rows = a["z"].shape[0], math.prod(a["z"].shape[1:]), a["weight"].shape[0]
    parts = a["squares"].shape[0]

    def data(draw: Draw) -> Data:
        stream, norm = draw.stream(t, hidden), draw.gain(hidden)
        stream[t // 2] = 0.0
        z, squares = behind_stream(stream, norm, parts)
        return {"z": z.view(a["z"].shape), "squares": squares, "weight": draw.weight(a["weight"])}

    def expected(given: Data) -> dict[str, Expected]:
        scale = inverse_rms(given["squares"].double().sum(0) / hidden, eps).unsqueeze(1)  # [T, 1]
        tolerance = TENSOR_F32 if a["out"].dtype == "f32" else BF16
        return {"out": Expected(value=product(given["z"], given["weight"]) * scale, tolerance=tolerance)}

    yield Case(
        name="random",
        data=data,
        expected=expected,
        bytes_moved=total_bytes(spec),
        flops=2 * t * rows * hidden,
        rows={"z": 0, "squares": 1, "out": 0},
        kept=(0, t // 2 - 1, t - 1),
    )


def _encoded(spec: KernelSpec) -> Iterator[Case]:
    a, eps, hidden = arrays(spec), constant(spec, "EPS"), int(constant(spec, "HIDDEN"))
    t, rows, parts = a["out"].shape[0], a["out"].shape[1], a["squares"].shape[0]
    tolerance = TENSOR_F32 if t > 1 else one_row_tolerance(spec)

    def data(draw: Draw) -> Data:
        stream = draw.stream(t, hidden)
        if t > 1:
            stream[t // 2] = 0.0
        z, squares = behind_stream(stream, draw.gain(hidden), parts)
        return {"z": z.view(a["z"].stored), "squares": squares, **weight(draw, spec)}

    def expected(given: Data) -> dict[str, Expected]:
        norm = inverse_rms(given["squares"].double().sum(0) / hidden, eps).unsqueeze(1)  # [T, 1]
        products = product(given["z"].reshape(t, hidden), matrix(spec, given)) * given["scale"].double()
        return {"out": Expected(value=products * norm, tolerance=tolerance)}

    yield Case(
        name="random",
        data=data,
        expected=expected,
        bytes_moved=total_bytes(spec),
        flops=2 * t * rows * hidden,
        rows={"z": 0, "squares": 1, "out": 0} if t > 1 else {},
        kept=(0, t // 2 - 1, t - 1) if t > 1 else (),
    )
