"""Number formats in numpy: what each code means in FP64, and the nearest code of a number.

Sources: OCP 8-bit floating point specification (E4M3 has no infinity, 0x7F is NaN), OCP microscaling formats
(E2M1, E8M0).
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
RAW = {
    "bf16": np.uint16,
    "f16": np.float16,
    "f32": np.float32,
    "i32": np.int32,
    "i8": np.int8,
    "u8": np.uint8,
    "e4m3": np.uint8,
    "e5m2": np.uint8,
    "e8m0": np.uint8,
}


def decode(dtype: str, raw: Array) -> Array:
    """FP64 of raw numbers of a format of `RAW`, or of codes of `e2m1`."""
    if dtype == "bf16":
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype in _TABLES:
        return _TABLES[dtype][raw]
    return raw.astype(np.float64)


def encode(dtype: str, values: Array) -> Array:
    """The nearest code of each value; bf16 is cut, not rounded."""
    if dtype == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if dtype in _TABLES:
        table = np.where(np.isfinite(_TABLES[dtype]), _TABLES[dtype], np.inf)
        codes = [
            np.abs(chunk[:, None] - table).argmin(axis=1) for chunk in np.array_split(values.ravel(), 64)
        ]
        return np.concatenate(codes).astype(np.uint8).reshape(values.shape)
    return values.astype(RAW[dtype])


def pack(codes: Array) -> Array:
    """Codes of four bits [., K] -> bytes [., K / 2], the first in the lower bits."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)


def unpack(packed: Array) -> Array:
    """The reverse of `pack`."""
    both = np.stack((packed & 15, packed >> 4), axis=-1)
    return both.reshape(*packed.shape[:-1], -1)


def _minifloat(exponent_bits: int, mantissa_bits: int, bias: int) -> Array:
    """The value of every code, sign bit first, infinities and NaN not yet marked."""
    codes = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    mantissa = codes & ((1 << mantissa_bits) - 1)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    sign = np.where(codes >> (exponent_bits + mantissa_bits), -1.0, 1.0)
    normal = (1 + mantissa / (1 << mantissa_bits)) * np.exp2(exponent.astype(np.float64) - bias)
    small = mantissa / (1 << mantissa_bits) * 2.0 ** (1 - bias)
    return sign * np.where(exponent == 0, small, normal)


def _tables() -> dict[str, Array]:
    e4m3, e5m2 = _minifloat(4, 3, 7), _minifloat(5, 2, 15)
    e4m3[[0x7F, 0xFF]] = np.nan
    e5m2[np.arange(256) & 0x7F >= 0x7C] = np.nan
    e8m0 = np.exp2(np.arange(256, dtype=np.float64) - 127)
    e8m0[0xFF] = np.nan
    return {"e4m3": e4m3, "e5m2": e5m2, "e8m0": e8m0, "e2m1": _minifloat(2, 1, 1)}


_TABLES = _tables()
