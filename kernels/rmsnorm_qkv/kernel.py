"""Projections of a normed row: query, key and value, and with other weights the language model head.

Three paths for three numbers of rows, as `products` has them. One row: the norm is inside. The other two take
activations already multiplied by the norm's weight, and the sums of squares that their producer left behind:
the norm's 1 / sqrt(mean) is one factor a row, so it is applied to the result.
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


@ct.kernel
def rmsnorm_linear(x, norm, weight, out, EPS: Float, ROWS: Int, WIDTH: Int, TILES: Int, AHEAD: Int):
    """out[n] = rmsnorm(x) · weight[n] for ROWS rows a block; x bf16 [1, K], out f32 [1, N]."""
    block = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    ahead = first_tiles(weight, (block,), ROWS, WIDTH, AHEAD)
    gains = first_gains(norm, WIDTH, AHEAD)
    ct.grid_dependency_control_wait()
    products = normed_products(x, norm, weight, (block,), ahead, gains, EPS, ROWS, WIDTH, TILES, AHEAD)
    ct.store(out, index=(0, block), tile=ct.transpose(products[0]), allow_tma=False, check_bounds=False)


@ct.kernel
def scaled_linear_rows(
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
):
    """out[t, n] = scale(t) · z[t] · weight[n] for T = 8 rows; z in parts, out f32 [8, N]."""
    block = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    ahead = first_stacked_tiles(weight, (block,), ROWS, STACK, WIDTH, AHEAD)
    ct.grid_dependency_control_wait()
    products = stacked_products(z, weight, (block,), ahead, T, ROWS, STACK, WIDTH, TILES, AHEAD)
    scale = scale_of_rows(squares, T, PARTS, TILES * WIDTH * STACK, EPS)
    ct.store(out, index=(0, block), tile=products[0] * scale, allow_tma=False, check_bounds=False)


@ct.kernel
def scaled_linear_prompt(
    z, squares, weight, out, EPS: Float, PARTS: Int, T: Int, ROWS: Int, WIDTH: Int, TILES: Int
):
    """out[t, n] = scale(t) · z[t] · weight[n], T rows of z and ROWS of weight a block; z, out bf16."""
    column, row = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    products = prompt_products(z, weight, (column,), row, T, ROWS, WIDTH, TILES)
    scale = scale_of_prompt(squares, row, T, PARTS, TILES * WIDTH, EPS)
    ct.store(out, index=(row, column), tile=(products[0] * scale).astype(ct.bfloat16), check_bounds=False)


@ct.kernel
def scaled_linear_encoded(
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
):
    """out[n] = scale · z · weight[n] for one row, of encoded weights; z bf16 repeated, out f32 [1, N]."""
    block = ct.bid(0)
    bands = (block,)
    ct.grid_dependency_control_launch_dependents()
    ahead = first_tiles(codes, bands, ROWS, WIDTH, AHEAD)
    curves = row_curves(table, bands, FORMAT, ROWS)
    factor = scale_of_codes(scale, block, FORMAT, ROWS)
    ct.grid_dependency_control_wait()
    norm = scale_of_rows(squares, 1, PARTS, HIDDEN, EPS)
    (product,) = encoded_products(z, codes, table, bands, ahead, curves, FORMAT, ROWS, WIDTH, TILES, AHEAD)
    product = product * factor * norm
    ct.store(out, index=(0, block), tile=product, allow_tma=False, check_bounds=False)


@ct.kernel
def scaled_linear_encoded_rows(
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
):
    """out[t, n] = scale(t) · z[t] · weight[n] for T = 8 rows, of encoded weights; out f32 [8, N]."""
    block = ct.bid(0)
    bands = (block,)
    ct.grid_dependency_control_launch_dependents()
    ahead = first_stacked_codes(codes, bands, ROWS, STACK, WIDTH, AHEAD)
    factor = scale_of_codes(scale, block, FORMAT, ROWS)
    ct.grid_dependency_control_wait()
    (product,) = encoded_stacked_products(
        z, codes, table, bands, ahead, FORMAT, T, ROWS, STACK, WIDTH, TILES, AHEAD
    )
    product = product * factor * scale_of_rows(squares, T, PARTS, HIDDEN, EPS)
    ct.store(out, index=(0, block), tile=product, allow_tma=False, check_bounds=False)
