"""Projections of a normed row: query, key and value, and with other weights the language model head.

Three paths for three numbers of rows. One row: matrix-vector products on the ordinary units, the norm inside
(`rmsnorm_linear`). Up to 8 rows: weights first on the tensor cores, where their 64 rows fill the unit and
each is read once for all rows (`scaled_linear_rows`). Prompts: activations first (`scaled_linear_prompt`).
The last two take activations already multiplied by the norm's weight, and the sums of squares that their
producer left behind: the norm's 1 / sqrt(mean) is one factor a row, so it is applied to the result.
"""

from __future__ import annotations

import cuda.tile as ct

Int = ct.Constant[int]
Float = ct.Constant[float]


def weight_tile(weight, row, column, ROWS, WIDTH):
    """A tile of a vector product's weights [ROWS, WIDTH]: plain loads, 2 to 6 times as fast as TMA here."""
    return ct.load(
        weight, index=(row, column), shape=(ROWS, WIDTH), latency=8, allow_tma=False, check_bounds=False
    )


def gain_tile(norm, index, WIDTH):
    """WIDTH of a norm's weights as f32 [1, WIDTH]."""
    tile = ct.load(norm, index=(index,), shape=(WIDTH,), allow_tma=False, check_bounds=False)
    return tile.astype(ct.float32).reshape((1, WIDTH))


def stream_tile(array, row, column, ROWS, WIDTH):
    """A tile for the tensor cores [ROWS, WIDTH], many of them in flight."""
    return ct.load(array, index=(row, column), shape=(ROWS, WIDTH), latency=8, check_bounds=False)


def inverse_rms(squares, row, ROWS, PARTS, WIDTH, EPS):
    """1 / sqrt(mean(x²) + eps) of rows [1, ROWS] from their partial sums of squares [PARTS, T]."""
    parts = ct.load(
        squares,
        index=(0, row),
        shape=(PARTS, ROWS),
        padding_mode=ct.PaddingMode.ZERO,
        allow_tma=False,
    )
    return ct.rsqrt(ct.sum(parts, axis=0, keepdims=True) * (1.0 / WIDTH) + EPS)


@ct.kernel
def rmsnorm_linear(x, norm, weight, out, EPS: Float, ROWS: Int, WIDTH: Int, TILES: Int, AHEAD: Int):
    """out[n] = rmsnorm(x) · weight[n] for ROWS rows a block; x bf16 [1, K], out f32 [1, N]."""
    block = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    # Weights do not depend on the kernel before this one: the first tiles are on their way while it still
    # runs.
    ahead = tuple(weight_tile(weight, block, k, ROWS, WIDTH) for k in ct.static_iter(range(AHEAD)))
    gains = tuple(gain_tile(norm, k, WIDTH) for k in ct.static_iter(range(AHEAD)))
    ct.grid_dependency_control_wait()
    total = ct.zeros((ROWS, WIDTH), dtype=ct.float32)
    squares = ct.zeros((1, WIDTH), dtype=ct.float32)
    for k in ct.static_iter(range(AHEAD)):
        row = weight_tile(x, 0, k, 1, WIDTH).astype(ct.float32)
        squares = squares + row * row
        total = total + ahead[k].astype(ct.float32) * (row * gains[k])
    for k in range(AHEAD, TILES):
        tile = weight_tile(weight, block, k, ROWS, WIDTH).astype(ct.float32)
        row = weight_tile(x, 0, k, 1, WIDTH).astype(ct.float32)
        squares = squares + row * row
        total = total + tile * (row * gain_tile(norm, k, WIDTH))
    scale = ct.rsqrt(ct.sum(squares, axis=1, keepdims=True) * (1.0 / (TILES * WIDTH)) + EPS)  # [1, 1]
    result = ct.sum(total, axis=1, keepdims=True) * scale  # [ROWS, 1]
    ct.store(out, index=(0, block), tile=ct.transpose(result), allow_tma=False, check_bounds=False)


@ct.kernel
def scaled_linear_rows(
    z, squares, weight, out, EPS: Float, T: Int, PARTS: Int, ROWS: Int, WIDTH: Int, TILES: Int, AHEAD: Int
):
    """out[t, n] = scale(t) · z[t] · weight[n] for T = 8 rows; z bf16 [8, K], out f32 [8, N]."""
    block = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    ahead = tuple(stream_tile(weight, block, k, ROWS, WIDTH) for k in ct.static_iter(range(AHEAD)))
    ct.grid_dependency_control_wait()
    total = ct.zeros((ROWS, T), dtype=ct.float32)
    for k in ct.static_iter(range(AHEAD)):
        total = ct.mma(ahead[k], ct.transpose(stream_tile(z, 0, k, T, WIDTH)), total)
    for k in range(AHEAD, TILES):
        tile = stream_tile(weight, block, k, ROWS, WIDTH)
        total = ct.mma(tile, ct.transpose(stream_tile(z, 0, k, T, WIDTH)), total)
    scale = inverse_rms(squares, 0, T, PARTS, TILES * WIDTH, EPS)  # [1, T]
    result = ct.transpose(total * scale)  # [T, ROWS]
    ct.store(out, index=(0, block), tile=result, allow_tma=False, check_bounds=False)


@ct.kernel
def scaled_linear_prompt(
    z, squares, weight, out, EPS: Float, PARTS: Int, T: Int, ROWS: Int, WIDTH: Int, TILES: Int
):
    """out[t, n] = scale(t) · z[t] · weight[n], T rows of z and ROWS of weight a block; z, out bf16."""
    column, row = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    total = ct.zeros((T, ROWS), dtype=ct.float32)
    for k in range(TILES):
        left = ct.load(z, index=(row, k), shape=(T, WIDTH), latency=4, check_bounds=False)
        right = ct.load(weight, index=(column, k), shape=(ROWS, WIDTH), latency=4, check_bounds=False)
        total = ct.mma(left, ct.transpose(right), total)
    scale = ct.transpose(inverse_rms(squares, row, T, PARTS, TILES * WIDTH, EPS))  # [T, 1]
    ct.store(out, index=(row, column), tile=(total * scale).astype(ct.bfloat16), check_bounds=False)
