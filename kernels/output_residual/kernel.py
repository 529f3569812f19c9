"""A projection added to the residual stream: the attention's output, or the feed-forward's down.

The stream is kept in f32 (`wide`), so rounding does not pile up over layers. Beside it lies what the next
projection reads: its bf16 copy on the one-row path; on the others z = stream · norm weight in bf16, and
the sum of squares of each block's columns, from which the reader takes the norm's factor (`rmsnorm_qkv`).
"""

from __future__ import annotations

import cuda.tile as ct

from kernels.rmsnorm_qkv.kernel import Int, gain_tile, stream_tile, weight_tile


@ct.kernel
def linear_residual(x, weight, wide, narrow, ROWS: Int, WIDTH: Int, TILES: Int, AHEAD: Int):
    """wide[n] += x · weight[n]; narrow = bf16(wide). x bf16 [1, K], wide f32 [1, N], narrow bf16 [1, N]."""
    block = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    ahead = tuple(weight_tile(weight, block, k, ROWS, WIDTH) for k in ct.static_iter(range(AHEAD)))
    ct.grid_dependency_control_wait()
    total = ct.zeros((ROWS, WIDTH), dtype=ct.float32)
    for k in ct.static_iter(range(AHEAD)):
        total = total + ahead[k].astype(ct.float32) * weight_tile(x, 0, k, 1, WIDTH).astype(ct.float32)
    for k in range(AHEAD, TILES):
        tile = weight_tile(weight, block, k, ROWS, WIDTH).astype(ct.float32)
        total = total + tile * weight_tile(x, 0, k, 1, WIDTH).astype(ct.float32)
    change = ct.transpose(ct.sum(total, axis=1, keepdims=True))  # [1, ROWS]
    stream = weight_tile(wide, 0, block, 1, ROWS) + change
    ct.store(wide, index=(0, block), tile=stream, allow_tma=False, check_bounds=False)
    ct.store(narrow, index=(0, block), tile=stream.astype(ct.bfloat16), allow_tma=False, check_bounds=False)


def leave_behind(stream, norm, wide, z, squares, row, column, T, ROWS):
    """Write the stream [T, ROWS], its product with the next norm's weight, and its sums of squares."""
    product = (stream * gain_tile(norm, column, ROWS)).astype(ct.bfloat16)
    ct.store(wide, index=(row, column), tile=stream, allow_tma=False, check_bounds=False)
    ct.store(z, index=(row, column), tile=product, allow_tma=False, check_bounds=False)
    sums = ct.transpose(ct.sum(stream * stream, axis=1, keepdims=True))  # [1, T]
    ct.store(squares, index=(column, row), tile=sums, allow_tma=False, check_bounds=False)


@ct.kernel
def linear_residual_rows(
    x, weight, wide, norm, z, squares, T: Int, ROWS: Int, WIDTH: Int, TILES: Int, AHEAD: Int
):
    """wide[t, n] += x[t] · weight[n] for T = 8 rows, weights first; then `leave_behind`."""
    block = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    ahead = tuple(stream_tile(weight, block, k, ROWS, WIDTH) for k in ct.static_iter(range(AHEAD)))
    ct.grid_dependency_control_wait()
    total = ct.zeros((ROWS, T), dtype=ct.float32)
    for k in ct.static_iter(range(AHEAD)):
        total = ct.mma(ahead[k], ct.transpose(stream_tile(x, 0, k, T, WIDTH)), total)
    for k in range(AHEAD, TILES):
        tile = stream_tile(weight, block, k, ROWS, WIDTH)
        total = ct.mma(tile, ct.transpose(stream_tile(x, 0, k, T, WIDTH)), total)
    stream = weight_tile(wide, 0, block, T, ROWS) + ct.transpose(total)  # [T, ROWS]
    leave_behind(stream, norm, wide, z, squares, 0, block, T, ROWS)


@ct.kernel
def linear_residual_prompt(x, weight, wide, norm, z, squares, T: Int, ROWS: Int, WIDTH: Int, TILES: Int):
    """wide[t, n] += x[t] · weight[n], T rows of x and ROWS of weight a block; then `leave_behind`."""
    column, row = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    total = ct.zeros((T, ROWS), dtype=ct.float32)
    for k in range(TILES):
        left = ct.load(x, index=(row, k), shape=(T, WIDTH), latency=4, check_bounds=False)
        right = ct.load(weight, index=(column, k), shape=(ROWS, WIDTH), latency=4, check_bounds=False)
        total = ct.mma(left, ct.transpose(right), total)
    stream = weight_tile(wide, row, column, T, ROWS) + total
    leave_behind(stream, norm, wide, z, squares, row, column, T, ROWS)
