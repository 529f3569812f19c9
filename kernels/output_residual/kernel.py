"""A projection added to the residual stream: the attention's output, or the feed-forward's down.

The stream is kept in f32 (`residual`), so rounding does not pile up over layers. Beside it lies what the next
projection reads: its bf16 copy on the one-row path; on the others z = stream · norm weight in bf16, and
the sum of squares of each block's columns, from which the reader takes the norm's factor (`rmsnorm_qkv`).
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
    Int,
    first_stacked_tiles,
    first_tiles,
    gain_tile,
    plain_tile,
    prompt_products,
    row_tile,
    stacked_products,
)


@ct.kernel
def linear_residual(x, weight, residual, hidden, ROWS: Int, WIDTH: Int, TILES: Int, AHEAD: Int):
    """residual[n] += x · weight[n]; hidden = bf16(residual). x bf16 [1, K], both of them [1, N]."""
    block = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    (ahead,) = first_tiles(weight, (block,), ROWS, WIDTH, AHEAD)
    ct.grid_dependency_control_wait()
    total = ct.zeros((ROWS, WIDTH), dtype=ct.float32)
    for k in ct.static_iter(range(AHEAD)):
        total = total + ahead[k].astype(ct.float32) * row_tile(x, k, WIDTH)
    for k in range(AHEAD, TILES):
        tile = plain_tile(weight, block, k, ROWS, WIDTH).astype(ct.float32)
        total = total + tile * row_tile(x, k, WIDTH)
    change = ct.transpose(ct.sum(total, axis=1, keepdims=True))  # [1, ROWS]
    stream = plain_tile(residual, 0, block, 1, ROWS) + change
    ct.store(residual, index=(0, block), tile=stream, allow_tma=False, check_bounds=False)
    ct.store(hidden, index=(0, block), tile=stream.astype(ct.bfloat16), allow_tma=False, check_bounds=False)


def leave_behind(stream, gain, residual, z, squares, row, column):
    """Write the stream [T, ROWS], its product with the next norm's `gain` [1, ROWS], its sums of squares."""
    product = (stream * gain).astype(ct.bfloat16)
    ct.store(residual, index=(row, column), tile=stream, allow_tma=False, check_bounds=False)
    ct.store(z, index=(row, column), tile=product, allow_tma=False, check_bounds=False)
    sums = ct.transpose(ct.sum(stream * stream, axis=1, keepdims=True))  # [1, T]
    ct.store(squares, index=(column, row), tile=sums, allow_tma=False, check_bounds=False)


@ct.kernel
def linear_residual_rows(
    x, weight, residual, norm, z, squares, T: Int, ROWS: Int, STACK: Int, WIDTH: Int, TILES: Int, AHEAD: Int
):
    """residual[t, n] += x[t] · weight[n] for T = 8 rows, weights first; then `leave_behind`."""
    block = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    ahead = first_stacked_tiles(weight, (block,), ROWS, STACK, WIDTH, AHEAD)
    ct.grid_dependency_control_wait()
    (change,) = stacked_products(x, weight, (block,), ahead, T, ROWS, STACK, WIDTH, TILES, AHEAD)
    stream = plain_tile(residual, 0, block, T, ROWS) + change
    leave_behind(stream, gain_tile(norm, block, ROWS), residual, z, squares, 0, block)


@ct.kernel
def linear_residual_prompt(x, weight, residual, norm, z, squares, T: Int, ROWS: Int, WIDTH: Int, TILES: Int):
    """residual[t, n] += x[t] · weight[n], T rows of x and ROWS of weight a block; then `leave_behind`."""
    column, row = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    (change,) = prompt_products(x, weight, (column,), row, T, ROWS, WIDTH, TILES)
    stream = plain_tile(residual, row, column, T, ROWS) + change
    leave_behind(stream, gain_tile(norm, column, ROWS), residual, z, squares, row, column)


@ct.kernel
def linear_residual_encoded(
    x,
    codes,
    scale,
    table,
    residual,
    norm,
    z,
    squares,
    FORMAT: Int,
    BANDS: Int,
    ROWS: Int,
    WIDTH: Int,
    TILES: Int,
    AHEAD: Int,
):
    """residual[n] += x · weight[n] for one row, of encoded weights; then `leave_behind`. x bf16 repeated.

    One or two bands of ROWS rows a block: few blocks leave few sums of squares for the next kernel to add.
    """
    block = ct.bid(0)
    bands = tuple(block * BANDS + band for band in ct.static_iter(range(BANDS)))
    ct.grid_dependency_control_launch_dependents()
    ahead = first_tiles(codes, bands, ROWS, WIDTH, AHEAD)
    curves = row_curves(table, bands, FORMAT, ROWS)
    factor = scale_of_codes(scale, block, FORMAT, BANDS * ROWS)
    ct.grid_dependency_control_wait()
    products = encoded_products(x, codes, table, bands, ahead, curves, FORMAT, ROWS, WIDTH, TILES, AHEAD)
    change = products[0] if BANDS == 1 else ct.cat(products, axis=1)
    stream = plain_tile(residual, 0, block, 1, BANDS * ROWS) + change * factor
    leave_behind(stream, gain_tile(norm, block, BANDS * ROWS), residual, z, squares, 0, block)


@ct.kernel
def linear_residual_encoded_rows(
    x,
    codes,
    scale,
    table,
    residual,
    norm,
    z,
    squares,
    T: Int,
    FORMAT: Int,
    ROWS: Int,
    STACK: Int,
    WIDTH: Int,
    TILES: Int,
    AHEAD: Int,
):
    """residual[t, n] += x[t] · weight[n] for T = 8 rows, encoded weights first; then `leave_behind`."""
    block = ct.bid(0)
    bands = (block,)
    ct.grid_dependency_control_launch_dependents()
    ahead = first_stacked_codes(codes, bands, ROWS, STACK, WIDTH, AHEAD)
    factor = scale_of_codes(scale, block, FORMAT, ROWS)
    ct.grid_dependency_control_wait()
    (change,) = encoded_stacked_products(
        x, codes, table, bands, ahead, FORMAT, T, ROWS, STACK, WIDTH, TILES, AHEAD
    )
    stream = plain_tile(residual, 0, block, T, ROWS) + change * factor
    leave_behind(stream, gain_tile(norm, block, ROWS), residual, z, squares, 0, block)
