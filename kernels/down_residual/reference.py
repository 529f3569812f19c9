"""Reference of the feed-forward down projection, added to the residual stream."""

from __future__ import annotations

from torch import Tensor

from kernels.linear.reference import linear


def down_residual(activated: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    """activated [T, I], weight [H, I], residual [T, H] -> residual + activated weightᵀ [T, H].

    Added in FP32, then rounded to the type of `residual`.
    """
    return (residual + linear(activated, weight)).to(residual.dtype)
