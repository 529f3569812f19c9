"""Reference of the feed-forward block's first half: Shazeer, "GLU Variants Improve Transformer", 2020."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu

from kernels.linear.reference import linear
from kernels.rmsnorm.reference import rmsnorm


def rmsnorm_gate_up_silu(x: Tensor, norm: Tensor, gate_up: Tensor, eps: float) -> Tensor:
    """x [T, H], norm [H], gate_up [2 I, H] (gate rows, up rows) -> silu(gate) · up [T, I], rounded once."""
    gate, up = linear(rmsnorm(x, norm, eps), gate_up).chunk(2, dim=-1)  # each [T, I]
    return (silu(gate) * up).to(x.dtype)
