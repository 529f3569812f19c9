"""Reference of attention: per-head norm of query and key, rotary embedding, causal grouped-query attention.

Sources: Su et al., "RoFormer", 2021, with the half-split pairing of GPT-NeoX (dimension i turns with i +
D/2); Ainslie et al., "GQA", 2023. Letters: T rows, Hq query heads, Hkv key-value heads, G = Hq / Hkv, D head
dimension, N keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.rmsnorm.reference import rmsnorm


def rotary_table(head_dim: int, theta: float, length: int) -> Tensor:
    """Cosines, then sines, of position · theta^(-2i/D) for i < D/2: [length, D] in FP32."""
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)  # [D/2]
    angle = torch.arange(length, dtype=torch.float32).outer(frequency)  # [length, D/2]
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def rotary_rows(table: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine at `positions` [T], each [T, 1, D]: x turned is x · cos + roll(x, D/2) · sin."""
    cos, sin = table[positions].unsqueeze(1).chunk(2, dim=-1)  # [T, 1, D/2]
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def norm_rotate(heads: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Query and key heads [T, Hq + Hkv, D], normed by `weight` [Hq + Hkv, D] and turned to their positions.

    The result has the type of `heads`.
    """
    normed = rmsnorm(heads, weight, eps)
    return torch.addcmul(normed * cos, normed.roll(normed.shape[-1] // 2, -1), sin).to(heads.dtype)


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of the last T of N positions.

    Shapes: query [T, Hq, D], keys and values [Hkv, N, D] -> [T, Hq · D].
    Row t sees keys 0 .. N - T + t; the rows behind it get weight zero, so they must be finite. Softmax and
    both products are FP32; the result has the type of `query`.
    """
    (rows, heads, dim), (groups, length) = query.shape, keys.shape[:2]
    grouped = (query.float() / math.sqrt(dim)).view(rows, groups, -1, dim)  # [T, Hkv, G, D]
    grouped = grouped.permute(1, 2, 0, 3).reshape(groups, -1, dim)  # [Hkv, G · T, D]
    scores = grouped @ keys.float().transpose(1, 2)  # [Hkv, G · T, N]
    if rows > 1:
        future = torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu(1)
        own = scores.view(groups, -1, rows, length)[..., length - rows :]  # [Hkv, G, T, T]
        own.masked_fill_(future, float("-inf"))
    mixed = scores.softmax(-1) @ values.float()  # [Hkv, G · T, D]
    mixed = mixed.view(groups, -1, rows, dim).permute(2, 0, 1, 3).reshape(rows, heads * dim)
    return mixed.to(query.dtype)
