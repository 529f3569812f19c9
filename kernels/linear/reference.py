"""Reference of the projection: y = x Wᵀ, accumulated in FP32 whatever the storage type."""

from __future__ import annotations

import torch
from torch import Tensor

# Weights are widened to FP32 a block of rows at a time: 2 MiB stay in the cache until the product reads them
# back, and no FP32 copy of the model is kept. All matrices of the demo model, best of 40 on one AVX2 core, at
# batch 1, 4 and 8: widened 1.4, 2.9 and 3.3 ms; a kept FP32 copy 1.7, 3.6 and 4.0 ms; products in BF16 1.4,
# 6.1 and 29 ms. Blocks of 256 KiB took 2.0 ms at batch 1, 4 MiB 1.5 ms.
BLOCK = 1 << 19


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, K] · weight [N, K]ᵀ -> [T, N] in FP32. A row of the result depends on that row of `x` alone."""
    x = x.float()
    rows = max(64, BLOCK // weight.shape[1])
    if weight.shape[0] <= rows:
        return x @ weight.float().T
    starts = range(0, weight.shape[0], rows)
    return torch.cat([x @ weight[start : start + rows].float().T for start in starts], dim=1)
