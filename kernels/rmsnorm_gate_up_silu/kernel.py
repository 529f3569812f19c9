"""The feed-forward block's first half: gate and up projections of a normed row, silu(gate) · up.

The weight holds the gate's rows, then the up's: HALF tiles further down lies the up row of a gate row. The
three paths are those of `rmsnorm_qkv`.
"""

from __future__ import annotations

import cuda.tile as ct

from kernels.rmsnorm_qkv.kernel import Float, Int, gain_tile, inverse_rms, stream_tile, weight_tile


def silu_times(gate, up):
    """silu(gate) · up in f32."""
    return gate / (1.0 + ct.exp(-gate)) * up


@ct.kernel
def gate_up_silu(x, norm, weight, out, EPS: Float, ROWS: Int, WIDTH: Int, TILES: Int, AHEAD: Int, HALF: Int):
    """One row: x bf16 [1, K], weight bf16 [2 I, K], out bf16 [1, I]; ROWS outputs a block."""
    block = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    gates_ahead = tuple(weight_tile(weight, block, k, ROWS, WIDTH) for k in ct.static_iter(range(AHEAD)))
    ups_ahead = tuple(weight_tile(weight, block + HALF, k, ROWS, WIDTH) for k in ct.static_iter(range(AHEAD)))
    gains = tuple(gain_tile(norm, k, WIDTH) for k in ct.static_iter(range(AHEAD)))
    ct.grid_dependency_control_wait()
    gate = ct.zeros((ROWS, WIDTH), dtype=ct.float32)
    up = ct.zeros((ROWS, WIDTH), dtype=ct.float32)
    squares = ct.zeros((1, WIDTH), dtype=ct.float32)
    for k in ct.static_iter(range(AHEAD)):
        row = weight_tile(x, 0, k, 1, WIDTH).astype(ct.float32)
        squares = squares + row * row
        row = row * gains[k]
        gate = gate + gates_ahead[k].astype(ct.float32) * row
        up = up + ups_ahead[k].astype(ct.float32) * row
    for k in range(AHEAD, TILES):
        gate_tile = weight_tile(weight, block, k, ROWS, WIDTH).astype(ct.float32)
        up_tile = weight_tile(weight, block + HALF, k, ROWS, WIDTH).astype(ct.float32)
        row = weight_tile(x, 0, k, 1, WIDTH).astype(ct.float32)
        squares = squares + row * row
        row = row * gain_tile(norm, k, WIDTH)
        gate = gate + gate_tile * row
        up = up + up_tile * row
    scale = ct.rsqrt(ct.sum(squares, axis=1, keepdims=True) * (1.0 / (TILES * WIDTH)) + EPS)  # [1, 1]
    result = silu_times(
        ct.sum(gate, axis=1, keepdims=True) * scale, ct.sum(up, axis=1, keepdims=True) * scale
    )
    tile = ct.transpose(result).astype(ct.bfloat16)  # [1, ROWS]
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
    WIDTH: Int,
    TILES: Int,
    AHEAD: Int,
    HALF: Int,
):
    """T = 8 rows, weights first: z bf16 [8, K], out bf16 [8, I]."""
    block = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    gates_ahead = tuple(stream_tile(weight, block, k, ROWS, WIDTH) for k in ct.static_iter(range(AHEAD)))
    ups_ahead = tuple(stream_tile(weight, block + HALF, k, ROWS, WIDTH) for k in ct.static_iter(range(AHEAD)))
    ct.grid_dependency_control_wait()
    gate = ct.zeros((ROWS, T), dtype=ct.float32)
    up = ct.zeros((ROWS, T), dtype=ct.float32)
    for k in ct.static_iter(range(AHEAD)):
        rows = ct.transpose(stream_tile(z, 0, k, T, WIDTH))
        gate = ct.mma(gates_ahead[k], rows, gate)
        up = ct.mma(ups_ahead[k], rows, up)
    for k in range(AHEAD, TILES):
        gate_tile = stream_tile(weight, block, k, ROWS, WIDTH)
        up_tile = stream_tile(weight, block + HALF, k, ROWS, WIDTH)
        rows = ct.transpose(stream_tile(z, 0, k, T, WIDTH))
        gate = ct.mma(gate_tile, rows, gate)
        up = ct.mma(up_tile, rows, up)
    scale = inverse_rms(squares, 0, T, PARTS, TILES * WIDTH, EPS)  # [1, T]
    tile = ct.transpose(silu_times(gate * scale, up * scale)).astype(ct.bfloat16)  # [T, ROWS]
    ct.store(out, index=(0, block), tile=tile, allow_tma=False, check_bounds=False)


@ct.kernel
def gate_up_silu_prompt(
    z, squares, weight, out, EPS: Float, PARTS: Int, T: Int, ROWS: Int, WIDTH: Int, TILES: Int, HALF: Int
):
    """T rows of z and ROWS outputs a block, activations first: z bf16 [., K], out bf16 [., I]."""
    column, row = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    gate = ct.zeros((T, ROWS), dtype=ct.float32)
    up = ct.zeros((T, ROWS), dtype=ct.float32)
    for k in range(TILES):
        left = ct.load(z, index=(row, k), shape=(T, WIDTH), latency=4, check_bounds=False)
        gate_tile = ct.load(weight, index=(column, k), shape=(ROWS, WIDTH), latency=4, check_bounds=False)
        up_tile = ct.load(
            weight, index=(column + HALF, k), shape=(ROWS, WIDTH), latency=4, check_bounds=False
        )
        gate = ct.mma(left, ct.transpose(gate_tile), gate)
        up = ct.mma(left, ct.transpose(up_tile), up)
    scale = ct.transpose(inverse_rms(squares, row, T, PARTS, TILES * WIDTH, EPS))  # [T, 1]
    result = silu_times(gate * scale, up * scale).astype(ct.bfloat16)
    ct.store(out, index=(row, column), tile=result, check_bounds=False)
