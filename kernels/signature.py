"""A kernel's specification as the signature its compiler wants. Importing it needs cuda-tile."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import cuda.tile as ct
from cuda.tile.compilation import ArrayConstraint, CallingConvention, ConstantConstraint, KernelSignature

from kernels.spec import Array, KernelSpec

ABI = "cutile_python_v2"
_DTYPES = {
    "bf16": ct.bfloat16,
    "f32": ct.float32,
    "i32": ct.int32,
    "u32": ct.uint32,
    "e4m3": ct.float8_e4m3fn,
}


def tile_kernel(spec: KernelSpec) -> ct.kernel:
    """The kernel function that `spec` names, with its hints."""
    module, name = spec.function.split(":")
    kernel = getattr(importlib.import_module(f"kernels.{module}"), name)
    function: Callable[..., Any] = (
        kernel._annotated_function.pyfunc
    )  # cuda-tile 1.7 has no public name for it
    return ct.kernel(function, occupancy=spec.occupancy, num_worker_warps=spec.warps)


def signature(spec: KernelSpec) -> KernelSignature:
    """Static shapes and strides, 16-byte aligned, no two arrays that overlap."""
    return KernelSignature(
        parameters=[
            *(_constraint(array) for array in spec.arrays),
            *(ConstantConstraint(value) for _, value in spec.constants),
        ],
        calling_convention=CallingConvention.cutile_python_v2(),
        symbol=spec.symbol,
    )


def _constraint(array: Array) -> ArrayConstraint:
    return ArrayConstraint(
        dtype=_DTYPES[array.dtype],
        ndim=len(array.shape),
        index_dtype=ct.int32,
        shape_constant=list(array.shape),
        stride_constant=list(array.strides),
        stride_lower_bound_incl=0,
        base_addr_divisible_by=16,
        alias_groups=(),
        may_alias_internally=array.repeated,
    )
