"""Reference of the attention output projection, added to the residual stream."""

from __future__ import annotations

from torch import Tensor

from kernels.linear.reference import linear


def output_residual(mixed: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    """mixed [T, Hq · D], weight [H, Hq · D], residual [T, H] -> residual + mixed weightᵀ [T, H].

    Added in FP32, then rounded to the type of `residual`.
    """
    return (residual + linear(mixed, weight)).to(residual.dtype)
