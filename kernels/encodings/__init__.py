"""Encodings of a weight matrix [N, K] with fewer bytes than bf16: what lies in memory, and what it means.

Standard library only. Each encoding is `codes`, a `scale` f32 [N] that multiplies a row's result, and for the
4-bit ones a `table`. `reference` decodes them, `tiles` has the tile functions that do so in a kernel.

fp8-e4m3: codes e4m3 [N, K]; w = code · scale.

int4-codebook: a code is a sign s and three bits m; u = ±(1 + m / 8). Each row has a codebook of 16 values,
u · (u² + curve), from its own `table` bf16 [N]. On normal weights a curve of -0.7 has 1.08 times the mean
squared error of the best 16 values there are (Lloyd-Max); evenly spaced ones have 1.22 times. A value is
computed in bf16, rounded once after u² + curve and once after the rest: two instructions for two weights,
where looking one up takes four or five for each. w = value · scale.

nvfp4: codes e2m1 (sign, then magnitude 0, 0.5, 1, 1.5, 2, 3, 4, 6); `table` e4m3 [N, K / 16] has a factor for
each 16 columns; w = code · factor · scale. Source: NVIDIA, "Introducing NVFP4", 2025.

4-bit codes lie in words u32 [N, K / 8]. A row is cut into tiles of `tile_words(K)` = J words, 8 J columns.
Column 2 J · i + 2 j + l of a tile, i < 4, j < J, l < 2, is in word j, in the half l (0 is the low one), in
plane i: so two neighbours are worked on at once as the halves of a register, and one plane of a tile meets
2 J activations that lie together. Turned left by 4 i bits, a word has plane i of both halves where
`PLANE_BITS` says, highest bit of the code first.
"""

from __future__ import annotations

from typing import Literal

from kernels.spec import Array, bf16, e4m3, f32, u32

Encoding = Literal["bf16", "fp8-e4m3", "int4-codebook", "nvfp4"]
ENCODINGS: tuple[Encoding, ...] = ("bf16", "fp8-e4m3", "int4-codebook", "nvfp4")
FOUR_BIT: tuple[Encoding, ...] = ("int4-codebook", "nvfp4")
FORMATS: dict[Encoding, int] = {"fp8-e4m3": 0, "int4-codebook": 1, "nvfp4": 2}  # a kernel's constant
PLANES = 4
PLANE_BITS: dict[Encoding, tuple[int, int, int, int]] = {
    "int4-codebook": (15, 6, 5, 4),  # where bf16 has its sign and the upper bits of its fraction
    "nvfp4": (3, 2, 1, 0),
}
BLOCK = 16  # columns that share a factor in nvfp4


def tile_words(width: int) -> int:
    """Words of a row's tile: the largest power of two up to 128 that divides them all."""
    words = width // 8
    return min(words & -words, 128)


def encoded(encoding: Encoding, rows: int, width: int) -> tuple[Array, ...]:
    """What stands for a matrix [rows, width]: named codes, scale and table, in this order.

    Errors: `ValueError` for a width that is no multiple of 256, and for bf16, which is the matrix itself.
    """
    if width % 256:
        raise ValueError(f"width: {width} is no multiple of 256")
    scale = f32("scale", rows)
    match encoding:
        case "fp8-e4m3":
            return e4m3("codes", rows, width), scale
        case "int4-codebook":
            return u32("codes", rows, width // 8), scale, bf16("table", rows)
        case "nvfp4":
            return u32("codes", rows, width // 8), scale, e4m3("table", rows, width // BLOCK)
        case _:
            raise ValueError(f"encoding: {encoding} has no codes")
