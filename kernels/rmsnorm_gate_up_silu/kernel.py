"""The feed-forward block's first half: gate and up projections of a normed row, silu(gate) · up.

The weight holds the gate's rows, then the up's: HALF bands further down lies the up row of a gate row. The
three paths are those of `rmsnorm_qkv`.
"""

from __future__ import annotations

import cuda.tile as ct

from kernels.encodings.tiles import (
    encoded_products,
    encoded_stacked_products,
    first_stacked_codes,
    row_curves,
    scale_of_codes,
)
from kernels.products import (
    Float,
    Int,
    first_gains,
    first_stacked_tiles,
    first_tiles,
    normed_products,
    prompt_products,
    scale_of_prompt,
    scale_of_rows,
    stacked_products,
)


def silu_times(gate, up):
    """silu(gate) · up in bf16."""
    return (gate / (1.0 + ct.exp(-gate)) * up).astype(ct.bfloat16)


@ct.kernel
def gate_up_silu(x, norm, weight, out, EPS: Float, ROWS: Int, WIDTH: Int, TILES: Int, AHEAD: Int, HALF: Int):
    """One row: x bf16 [1, K], weight bf16 [2 I, K], out bf16 [1, I]; ROWS outputs a block."""
    block = ct.bid(0)
    bands = (block, block + HALF)
    ct.grid_dependency_control_launch_dependents()
    ahead = first_tiles(weight, bands, ROWS, WIDTH, AHEAD)
    gains = first_gains(norm, WIDTH, AHEAD)
    ct.grid_dependency_control_wait()
    gate, up = normed_products(x, norm, weight, bands, ahead, gains, EPS, ROWS, WIDTH, TILES, AHEAD)
    tile = ct.transpose(silu_times(gate, up))  # [1, ROWS]
    ct.store(out, index=(0, block), tile=tile, allow_tma=False, check_bounds=False)


@ct.kernel
def gate_up_silu_rows(
    z,
    squares,
    weight,
    out,
    EPS: Float,
    T: Int,
    PARTS: Int,
    ROWS: Int,
    STACK: Int,
    WIDTH: Int,
    TILES: Int,
    AHEAD: Int,
    HALF: Int,
):
    """T = 8 rows, weights first: z bf16 [8, STACK, K / STACK], out bf16 [8, I]."""
    block = ct.bid(0)
    bands = (block, block + HALF)
    ct.grid_dependency_control_launch_dependents()
    ahead = first_stacked_tiles(weight, bands, ROWS, STACK, WIDTH, AHEAD)
    ct.grid_dependency_control_wait()
    gate, up = stacked_products(z, weight, bands, ahead, T, ROWS, STACK, WIDTH, TILES, AHEAD)
    scale = scale_of_rows(squares, T, PARTS, TILES * WIDTH * STACK, EPS)
    tile = silu_times(gate * scale, up * scale)
    ct.store(out, index=(0, block), tile=tile, allow_tma=False, check_bounds=False)


@ct.kernel
def gate_up_silu_prompt(
    z, squares, weight, out, EPS: Float, PARTS: Int, T: Int, ROWS: Int, WIDTH: Int, TILES: Int, HALF: Int
):
    """T rows of z and ROWS outputs a block, activations first: z bf16 [., K], out bf16 [., I]."""
    column, row = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    gate, up = prompt_products(z, weight, (column, column + HALF), row, T, ROWS, WIDTH, TILES)
    scale = scale_of_prompt(squares, row, T, PARTS, TILES * WIDTH, EPS)
    ct.store(out, index=(row, column), tile=silu_times(gate * scale, up * scale), check_bounds=False)


@ct.kernel
def gate_up_silu_encoded(
    z,
    squares,
    codes,
    scale,
    table,
    out,
    EPS: Float,
    HIDDEN: Int,
    PARTS: Int,
    FORMAT: Int,
    ROWS: Int,
    WIDTH: Int,
    TILES: Int,
    AHEAD: Int,
    HALF: Int,
):
    """One row, encoded weights: z bf16 repeated, out bf16 [1, I]; ROWS outputs a block."""
    block = ct.bid(0)
    bands = (block, block + HALF)
    ct.grid_dependency_control_launch_dependents()
    ahead = first_tiles(codes, bands, ROWS, WIDTH, AHEAD)
    curves = row_curves(table, bands, FORMAT, ROWS)
    factors = tuple(scale_of_codes(scale, band, FORMAT, ROWS) for band in ct.static_iter(bands))
    ct.grid_dependency_control_wait()
    norm = scale_of_rows(squares, 1, PARTS, HIDDEN, EPS)
    gate, up = encoded_products(z, codes, table, bands, ahead, curves, FORMAT, ROWS, WIDTH, TILES, AHEAD)
    tile = silu_times(gate * factors[0] * norm, up * factors[1] * norm)
    ct.store(out, index=(0, block), tile=tile, allow_tma=False, check_bounds=False)


@ct.kernel
def gate_up_silu_encoded_rows(
    z,
    squares,
    codes,
    scale,
    table,
    out,
    EPS: Float,
    HIDDEN: Int,
    T: Int,
    PARTS: Int,
    FORMAT: Int,
    ROWS: Int,
    STACK: Int,
    WIDTH: Int,
    TILES: Int,
    AHEAD: Int,
    HALF: Int,
):
    """T = 8 rows, encoded weights first: out bf16 [8, I]."""
    block = ct.bid(0)
    bands = (block, block + HALF)
    ct.grid_dependency_control_launch_dependents()
    ahead = first_stacked_codes(codes, bands, ROWS, STACK, WIDTH, AHEAD)
    factors = tuple(scale_of_codes(scale, band, FORMAT, ROWS) for band in ct.static_iter(bands))
    ct.grid_dependency_control_wait()
    gate, up = encoded_stacked_products(
        z, codes, table, bands, ahead, FORMAT, T, ROWS, STACK, WIDTH, TILES, AHEAD
    )
    norm = scale_of_rows(squares, T, PARTS, HIDDEN, EPS)
    tile = silu_times(gate * factors[0] * norm, up * factors[1] * norm)
    ct.store(out, index=(0, block), tile=tile, allow_tma=False, check_bounds=False)
