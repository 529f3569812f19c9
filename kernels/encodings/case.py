"""Encoded weights for cases: random ones as a kernel gets them, and the matrix that they stand for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.case import VECTOR_F32, Data, Draw, Tolerance, arrays, constant
from kernels.encodings import BLOCK, FORMATS, FOUR_BIT, Encoding
from kernels.encodings.reference import values
from kernels.spec import Array, KernelSpec

FOUR_PRODUCTS = Tolerance(
    norm=2.0**-8,
    element=2.0**-5,
    reason="four products are added in bf16, each sum rounded to 2^-9 of itself; that adds up as noise",
)
SIZE: dict[Encoding, float] = {"fp8-e4m3": 1.0, "int4-codebook": 2.8, "nvfp4": 3.0}  # of a random value


def encoding_of(spec: KernelSpec) -> Encoding:
    """The encoding that a kernel is compiled for."""
    return next(encoding for encoding, number in FORMATS.items() if number == constant(spec, "FORMAT"))


def one_row_tolerance(spec: KernelSpec) -> Tolerance:
    """Of f32 results on the path of one row."""
    return FOUR_PRODUCTS if encoding_of(spec) in FOUR_BIT else VECTOR_F32


def one_row_opcodes(spec: KernelSpec) -> tuple[str, ...]:
    """Instructions that the path of one row must hold: bf16 pairs for 4-bit codes, f32 for FP8."""
    return ("HFMA2",) if encoding_of(spec) in FOUR_BIT else ("F2FP", "FFMA")


def shape_of(spec: KernelSpec) -> tuple[int, int]:
    """Rows and columns of the kernel's matrix."""
    a, four_bit = arrays(spec), encoding_of(spec) in FOUR_BIT
    codes = a["codes"]
    each = 1 if codes.dtype == "e4m3" else 8 if four_bit else 4
    return codes.shape[0], math.prod(codes.shape[1:]) * each


def weight(draw: Draw, spec: KernelSpec, steep: float = 1.0) -> Data:
    """Codes of every kind, scale and table. The matrix keeps the size of its operand, times `steep`."""
    a, encoding = arrays(spec), encoding_of(spec)
    rows, width = shape_of(spec)
    size = steep / (SIZE[encoding] * math.sqrt(width))
    scale = (0.5 + draw.uniform((1, rows))) * size
    if encoding == "fp8-e4m3":
        codes = draw.normal(Array(name="codes", dtype="f32", shape=(rows, width))).to(torch.float8_e4m3fn)
        codes = codes if a["codes"].dtype == "e4m3" else codes.view(torch.uint32)
        return {"codes": codes.view(a["codes"].shape), "scale": scale, "table": scale.clone()}
    words = draw.integers(Array(name="codes", dtype="i32", shape=(rows, width // 8)), -(2**31), 2**31)
    codes = words.view(torch.uint32).view(a["codes"].shape)
    if encoding == "int4-codebook":
        table = (-0.95 + 0.95 * draw.uniform((rows, 1))).bfloat16()
    else:
        table = (0.1 + 1.8 * draw.uniform((rows, width // BLOCK))).to(torch.float8_e4m3fn)
    return {"codes": codes, "scale": scale, "table": table.view(a["table"].shape)}


def matrix(spec: KernelSpec, given: Data) -> Tensor:
    """What the codes stand for, without its scale: f32 [N, K], each a bf16 value."""
    encoding, (rows, width) = encoding_of(spec), shape_of(spec)
    if encoding == "fp8-e4m3":
        return values(encoding, given["codes"].reshape(rows, -1).view(torch.float8_e4m3fn))
    table = given["table"].reshape(rows, -1)
    table = table[:, 0] if encoding == "int4-codebook" else table
    return values(encoding, given["codes"].reshape(rows, width // 8), table)
