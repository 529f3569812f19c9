"""Vector add as a tile kernel. Read it beside `reference.py`."""

from __future__ import annotations

import cuda.tile as ct
from cuda.tile.compilation import ArrayConstraint, CallingConvention, ConstantConstraint, KernelSignature

from kernels.vector_add.cases import Case

SYMBOL = "vector_add"


@ct.kernel
def vector_add(a, b, out, TILE: ct.Constant[int]):
    block = ct.bid(0)
    x = ct.load(a, index=(block,), shape=(TILE,))  # [TILE], elements block * TILE and on
    y = ct.load(b, index=(block,), shape=(TILE,))  # [TILE]
    ct.store(out, index=(block,), tile=x + y)  # elements past the end of `out` are masked off


def signature(case: Case) -> KernelSignature:
    """What the compiler may assume: three contiguous, 16-byte aligned float32 arrays of `case.elements`."""
    array = ArrayConstraint(
        dtype=ct.float32,
        ndim=1,
        index_dtype=ct.int32,
        shape_constant=[case.elements],
        stride_constant=[1],
        stride_lower_bound_incl=0,
        base_addr_divisible_by=16,
        alias_groups=(),
        may_alias_internally=False,
    )
    return KernelSignature(
        parameters=[array, array, array, ConstantConstraint(case.tile)],
        calling_convention=CallingConvention.cutile_python_v2(),
        symbol=SYMBOL,
    )
