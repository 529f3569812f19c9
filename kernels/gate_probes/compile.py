"""A probe's source and signature, as the compiler wants them. Importing it needs cuda-tile."""

from __future__ import annotations

import cuda.tile as ct
from cuda.tile.compilation import ArrayConstraint, CallingConvention, ConstantConstraint, KernelSignature

from kernels.gate_probes import tiles
from kernels.gate_probes.probes import Operand, Probe

_DTYPES = {
    "bf16": ct.bfloat16,
    "f16": ct.float16,
    "f32": ct.float32,
    "i8": ct.int8,
    "i32": ct.int32,
    "u8": ct.uint8,
    "e4m3": ct.float8_e4m3fn,
    "e5m2": ct.float8_e5m2,
    "e8m0": ct.float8_e8m0fnu,
}


def probe_kernel(probe: Probe) -> ct.kernel:
    """The source that the probe names."""
    kernel: ct.kernel = getattr(tiles, probe.function)
    return kernel


def probe_signature(probe: Probe) -> KernelSignature:
    """Static shapes and strides, 16-byte aligned, no two arrays that overlap."""
    return KernelSignature(
        parameters=[
            *(_constraint(operand) for operand in probe.operands),
            *(ConstantConstraint(value) for _, value in probe.constants),
        ],
        calling_convention=CallingConvention.cutile_python_v2(),
        symbol=probe.symbol,
    )


def _constraint(operand: Operand) -> ArrayConstraint:
    return ArrayConstraint(
        dtype=_DTYPES[operand.dtype],
        ndim=len(operand.shape),
        index_dtype=ct.int32,
        shape_constant=list(operand.shape),
        stride_constant=list(operand.strides),
        stride_lower_bound_incl=0,
        base_addr_divisible_by=16,
        alias_groups=(),
        may_alias_internally=False,
    )
