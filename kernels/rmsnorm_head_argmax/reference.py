"""Reference of the step's end: final RMSNorm, language model head, greedy choice."""

from __future__ import annotations

from torch import Tensor

from kernels.linear.reference import linear
from kernels.rmsnorm.reference import rmsnorm


def rmsnorm_head_argmax(x: Tensor, norm: Tensor, head: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [T, H], norm [H], head [V, H] -> logits [T, V] in FP32 and each row's greedy token [T].

    Of equal maxima the lowest index is taken.
    """
    logits = linear(rmsnorm(x, norm, eps), head)
    return logits, logits.argmax(-1)
