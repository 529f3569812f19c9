"""Reference of the embedding look-up."""

from __future__ import annotations

import torch
from torch import Tensor


def embedding(tokens: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """tokens [T] (int64), table [V, H] -> [T, H] in `dtype`, the type the residual stream is kept in."""
    return table[tokens].to(dtype)
