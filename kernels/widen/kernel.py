"""Encoded weights back to bf16, in memory.

A prompt multiplies each weight with many rows, so it widens a matrix once and uses the bf16 prompt kernels.
"""

from __future__ import annotations

import cuda.tile as ct

from kernels.encodings.tiles import E4M3, INT4, four_bit_values, ones, row_curves, scale_of_codes
from kernels.products import Int, plain_tile


@ct.kernel
def widen(codes, scale, table, out, FORMAT: Int, ROWS: Int, WIDTH: Int):
    """out = values · scale in bf16, ROWS rows and one tile of WIDTH codes a block. Grid (rows, tiles).

    out bf16 [N, K] for FP8, [N, TILES, 4, 2 WIDTH] for words of 4-bit codes.
    """
    block, k = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_launch_dependents()
    tile = plain_tile(codes, block, k, ROWS, WIDTH)
    factor = ct.transpose(scale_of_codes(scale, block, FORMAT, ROWS))  # [ROWS, 1]
    curves = row_curves(table, (block,), FORMAT, ROWS)
    ct.grid_dependency_control_wait()  # the products before still read `out`
    if FORMAT == E4M3:
        values = (tile.astype(ct.float32) * factor).astype(ct.bfloat16)
        ct.store(out, index=(block, k), tile=values, allow_tma=False, check_bounds=False)
    else:
        one = ones() if FORMAT == INT4 else 0
        for plane in ct.static_iter(range(4)):
            values = four_bit_values(tile, plane, table, block, curves[0], one, k, FORMAT, ROWS, WIDTH)
            values = (values.astype(ct.float32) * factor).astype(ct.bfloat16)
            ct.store(
                out,
                index=(block, k, plane, 0),
                tile=values.reshape((ROWS, 1, 1, 2 * WIDTH)),
                allow_tma=False,
                check_bounds=False,
            )
