"""Seeded inputs of a probe, what must come out in FP64, and how far off it may be."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.gate_probes.formats import RAW, Array, decode, encode, pack, unpack
from kernels.gate_probes.probes import GROUP, Operand, Probe

SEED = 20260725
Arrays = dict[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """`norm` bounds ‖got - want‖ / ‖want‖, `element` each |got - want| / (|want| + rms(want))."""

    norm: float
    element: float
    reason: str


_EXACT = Limit(norm=0.0, element=0.0, reason="integers: exact")
_ROUNDED = {
    "bf16": Limit(norm=2.0**-7, element=2.0**-7, reason="product and sum each rounded to 8 bits: 2^-8 each"),
    "fp16": Limit(norm=2.0**-10, element=2.0**-10, reason="product and sum each rounded to 11 bits"),
    "tf32": Limit(norm=2.0**-10, element=2.0**-10, reason="product and sum each rounded to 11 bits"),
    "fp8-e4m3": Limit(norm=2.0**-3, element=2.0**-3, reason="product and sum each rounded to 4 bits"),
    "fp8-e5m2": Limit(norm=2.0**-2, element=2.0**-2, reason="product and sum each rounded to 3 bits"),
}
_F32_SUM = Limit(
    norm=2.0**-15,
    element=2.0**-12,
    reason="exact products; the tensor core cuts its f32 sum every 16 of 256: at most 16 times 2^-23",
)
_FP8_SUM = Limit(
    norm=2.0**-11,
    element=2.0**-9,
    reason="exact products; Hopper's fp8 units keep about 13 bits of a sum (as DeepSeek-V3 §3.3 measured)",
)


def limit_of(probe: Probe) -> Limit:
    """The stated tolerance."""
    if probe.precision == "int8" and probe.route in ("elementwise", "mma"):
        return _EXACT
    if probe.route == "elementwise":
        return _ROUNDED.get(probe.precision, _FP8_SUM)
    narrow = probe.precision.startswith(("fp8", "nvfp4")) and not probe.route.startswith("weight-only")
    return _FP8_SUM if narrow else _F32_SUM


def inputs(probe: Probe) -> Arrays:
    """The raw bits of every operand but the last, the same for everyone."""
    random = np.random.default_rng([SEED, zlib.crc32(probe.name.encode())])
    return {operand.name: _drawn(probe, operand, random) for operand in probe.operands[:-1]}


def expected(probe: Probe, data: Arrays) -> Array:
    """What the probe must write, FP64, from the very bits that it gets."""
    value = {operand.name: _value(probe, operand, data[operand.name]) for operand in probe.operands[:-1]}
    if probe.route == "elementwise":
        return value["a"] * value["b"] + value["a"]
    weights, x = value["w"], value["x"]
    if probe.route == "block-scaled-mma":
        weights, x = _times(weights, value["w_scale"]), _times(x, value["x_scale"])
    elif probe.precision == "int4-codebook":
        weights = np.take_along_axis(value["book"], _grouped(weights).astype(np.int64), axis=2)
        weights = weights.reshape(weights.shape[0], -1)
    elif probe.precision == "nvfp4" and "scale" in value:
        weights = _times(weights, value["scale"])
    elif "scale" in value:
        return (weights @ x.T) * value["scale"]
    return weights @ x.T


def judge(probe: Probe, got: Array, want: Array) -> dict[str, Any]:
    """Errors of `got`, raw bits of the output, beside their limits; `within` says whether both hold."""
    limit = limit_of(probe)
    off = np.abs(decode(probe.operands[-1].dtype, got) - want)
    size = float(np.sqrt(np.square(want).mean()))
    norm = float(np.linalg.norm(off) / np.linalg.norm(want))
    element = float((off / (np.abs(want) + size)).max())
    return {
        "norm": norm if math.isfinite(norm) else None,
        "element": element if math.isfinite(element) else None,
        "norm_limit": limit.norm,
        "element_limit": limit.element,
        "limit_reason": limit.reason,
        "compared_with": "numpy float64",
        "within": norm <= limit.norm and element <= limit.element,  # NaN is not
    }


def _drawn(probe: Probe, operand: Operand, random: np.random.Generator) -> Array:
    """Normal numbers, or what suits the operand: scales around one, whole numbers, indices."""
    shape = operand.shape
    if operand.name == "scale" and operand.dtype == "f32":
        return random.uniform(0.5, 2.0, shape).astype(np.float32)
    if operand.name.endswith("scale"):
        return encode("e8m0" if operand.dtype == "e8m0" else "e4m3", random.uniform(0.25, 4.0, shape))
    if operand.dtype == "i8":
        most = 10 if probe.route == "elementwise" else 127  # a · b + a must not leave eight bits
        return random.integers(-most, most + 1, shape).astype(np.int8)
    if operand.dtype == "u8" and probe.precision.startswith("fp8"):
        return encode(_format(probe), random.standard_normal(shape) * 2.0)
    if operand.dtype == "u8":
        return pack(random.integers(0, 16, (*shape[:-1], shape[-1] * 2)))
    values = random.standard_normal(shape) * (2.0 if operand.dtype.startswith("e") else 1.0)
    raw = encode(operand.dtype, values)
    if probe.precision == "tf32":  # tf32 keeps 10 bits of the mantissa: no rounding is left to the kernel
        raw = (raw.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    assert raw.dtype == RAW[operand.dtype]
    return raw


def _value(probe: Probe, operand: Operand, raw: Array) -> Array:
    if operand.dtype != "u8":
        return decode(operand.dtype, raw)
    if operand.name == "scale":
        return decode("e4m3", raw)
    if probe.precision.startswith("fp8"):
        return decode(_format(probe), raw)
    codes = unpack(raw)
    return decode("e2m1", codes) if probe.precision == "nvfp4" else codes.astype(np.float64)


def _format(probe: Probe) -> str:
    return probe.precision.removeprefix("fp8-")


def _times(values: Array, scales: Array) -> Array:
    """Each scale for its block of the last dimension."""
    return values * np.repeat(scales, values.shape[-1] // scales.shape[-1], axis=-1)


def _grouped(codes: Array) -> Array:
    return codes.reshape(codes.shape[0], -1, GROUP)
