"""Reference of RMSNorm followed by the fused query, key and value projection."""

from __future__ import annotations

from torch import Tensor

from kernels.linear.reference import linear
from kernels.rmsnorm.reference import rmsnorm


def rmsnorm_qkv(x: Tensor, norm: Tensor, qkv: Tensor, eps: float) -> Tensor:
    """x [T, H], norm [H], qkv [(Hq + 2 Hkv) · D, H] (rows of query, key, value) -> [T, (Hq + 2 Hkv) · D].

    The result has the type of `x`; between norm and projection nothing is rounded.
    """
    return linear(rmsnorm(x, norm, eps), qkv).to(x.dtype)
