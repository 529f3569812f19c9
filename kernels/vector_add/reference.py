"""Vector add in torch: what the kernel must compute."""

from __future__ import annotations

import torch


def vector_add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a + b` for float32 tensors of one shape [N], accumulated in float64 and rounded once.

    Errors: `ValueError` when shapes differ or a tensor is not one float32 vector.
    """
    for name, tensor in (("a", a), ("b", b)):
        if tensor.dtype is not torch.float32 or tensor.dim() != 1:
            raise ValueError(f"{name}: expected float32 [N], got {tensor.dtype} {list(tensor.shape)}")
    if a.shape != b.shape:
        raise ValueError(f"a and b: expected one shape, got {list(a.shape)} and {list(b.shape)}")
    return (a.double() + b.double()).float()  # [N]
