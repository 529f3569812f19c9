"""Reference of the encodings: codes, scale and table back to the matrix, in FP32."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.encodings import FOUR_BIT, PLANE_BITS, PLANES, Encoding, tile_words

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def decode(encoding: Encoding, codes: Tensor, scale: Tensor, table: Tensor | None = None) -> Tensor:
    """The matrix f32 [N, K] that `encoded` describes; the product with `scale` is rounded once."""
    return values(encoding, codes, table) * scale.unsqueeze(1)


def values(encoding: Encoding, codes: Tensor, table: Tensor | None = None) -> Tensor:
    """The matrix before its rows are scaled, f32 [N, K]; every value is a bf16 one."""
    if encoding not in FOUR_BIT:
        return codes.float()
    assert table is not None
    number = unpacked(encoding, codes)
    negative, magnitude = number >= 8, (number & 7).long()
    if encoding == "nvfp4":
        value = torch.tensor(E2M1, device=codes.device)[magnitude]
        factor = table.float().repeat_interleave(16, dim=1)
        return torch.where(negative, -value, value) * factor
    u = 1.0 + magnitude / 8
    u = torch.where(negative, -u, u)
    shaped = (u * u + table.float().unsqueeze(1)).bfloat16().float()
    return (u * shaped).bfloat16().float()


def codebook(table: Tensor) -> Tensor:
    """The 16 values of each row's int4 codebook before scaling, f32 [N, 16], in the order of the codes."""
    u = 1.0 + torch.arange(8, device=table.device) / 8
    u = torch.cat((u, -u))
    shaped = (u * u + table.float().unsqueeze(1)).bfloat16().float()
    return (u * shaped).bfloat16().float()


def unpacked(encoding: Encoding, codes: Tensor) -> Tensor:
    """The codes of words u32 [N, K / 8] in the order of the columns: int32 [N, K], each 0 to 15."""
    rows, words = codes.shape
    tile = tile_words(words * 8)
    word = codes.view(torch.int32).long() & 0xFFFFFFFF
    word = word.view(rows, words // tile, tile, 1)
    planes = []
    for plane in range(PLANES):
        turned = ((word << 4 * plane) | (word >> (32 - 4 * plane))) & 0xFFFFFFFF
        halves = torch.cat((turned & 0xFFFF, turned >> 16), dim=-1)  # [N, tiles, J, 2]
        number = torch.zeros_like(halves)
        for bit in PLANE_BITS[encoding]:
            number = number << 1 | halves >> bit & 1
        planes.append(number.flatten(2))
    return torch.stack(planes, dim=2).flatten(1).int()
