"""Products of activations with rows of weights, as tile functions that the operations share. Three paths.

One row of activations: the ordinary units, a few rows of weights a block. Up to 8 rows: the tensor cores,
weights first, so that each is read once for all rows. Prompts: the tensor cores, activations first.

A block may multiply with several bands of weight rows at once, as gate and up do: `bands` are their indices,
and what a function returns has one entry for each. Weights do not depend on the kernel before, so the first
two paths load their first AHEAD tiles while that one still runs, before the caller waits for it.
"""

from __future__ import annotations

import cuda.tile as ct

Int = ct.Constant[int]
Float = ct.Constant[float]


def plain_tile(array, row, column, ROWS, WIDTH):
    """A tile [ROWS, WIDTH] by plain loads: for vector products 2 to 6 times as fast as TMA."""
    return ct.load(
        array, index=(row, column), shape=(ROWS, WIDTH), latency=8, allow_tma=False, check_bounds=False
    )


def gain_tile(norm, index, WIDTH):
    """WIDTH of a norm's weights as f32 [1, WIDTH]."""
    tile = ct.load(norm, index=(index,), shape=(WIDTH,), allow_tma=False, check_bounds=False)
    return tile.astype(ct.float32).reshape((1, WIDTH))


def inverse_rms(total, WIDTH, EPS):
    """1 / sqrt(mean(x²) + eps) of rows, [ROWS, 1], from sums of squares [1, ROWS]."""
    return ct.transpose(ct.rsqrt(total * (1.0 / WIDTH) + EPS))


# One row.


def first_tiles(weight, bands, ROWS, WIDTH, AHEAD):
    """The first AHEAD tiles of each band."""
    return tuple(
        tuple(plain_tile(weight, band, k, ROWS, WIDTH) for k in ct.static_iter(range(AHEAD)))
        for band in ct.static_iter(bands)
    )


def first_gains(norm, WIDTH, AHEAD):
    """The norm's weights of the first AHEAD tiles."""
    return tuple(gain_tile(norm, k, WIDTH) for k in ct.static_iter(range(AHEAD)))


def row_tile(x, k, WIDTH):
    """WIDTH of the activations as f32 [1, WIDTH]."""
    return plain_tile(x, 0, k, 1, WIDTH).astype(ct.float32)


def normed_products(x, norm, weight, bands, ahead, gains, EPS, ROWS, WIDTH, TILES, AHEAD):
    """rmsnorm(x) · weightᵀ of each band, f32 [ROWS, 1]; x bf16 [1, K]."""
    sums = tuple(ct.zeros((ROWS, WIDTH), dtype=ct.float32) for _ in ct.static_iter(bands))
    squares = ct.zeros((1, WIDTH), dtype=ct.float32)
    for k in ct.static_iter(range(AHEAD)):
        row = row_tile(x, k, WIDTH)
        squares = squares + row * row
        row = row * gains[k]
        sums = tuple(
            sums[i] + ahead[i][k].astype(ct.float32) * row for i in ct.static_iter(range(len(bands)))
        )
    for k in range(AHEAD, TILES):
        row = row_tile(x, k, WIDTH)
        squares = squares + row * row
        row = row * gain_tile(norm, k, WIDTH)
        sums = tuple(
            sums[i] + plain_tile(weight, bands[i], k, ROWS, WIDTH).astype(ct.float32) * row
            for i in ct.static_iter(range(len(bands)))
        )
    scale = ct.rsqrt(ct.sum(squares, axis=1, keepdims=True) * (1.0 / (TILES * WIDTH)) + EPS)  # [1, 1]
    return tuple(ct.sum(total, axis=1, keepdims=True) * scale for total in ct.static_iter(sums))


# Up to 8 rows.


def stacked_tile(array, band, k, ROWS, STACK, WIDTH):
    """A tile of each of the STACK parts that the reduction is cut into, one below the other.

    array bf16 [N, STACK, K / STACK] -> [ROWS · STACK, WIDTH]. The tensor core takes 64 rows of weights. A
    block with 16 of the output and a stack of 4 fills it as well as one with 64, and there are four times as
    many blocks to share the memory's bandwidth evenly.
    """
    tile = ct.load(array, index=(band, 0, k), shape=(ROWS, STACK, WIDTH), latency=8, check_bounds=False)
    return tile.reshape((ROWS * STACK, WIDTH))


def first_stacked_tiles(weight, bands, ROWS, STACK, WIDTH, AHEAD):
    """The first AHEAD tiles of each band."""
    return tuple(
        tuple(stacked_tile(weight, band, k, ROWS, STACK, WIDTH) for k in ct.static_iter(range(AHEAD)))
        for band in ct.static_iter(bands)
    )


def unstacked(product, T, ROWS, STACK):
    """[ROWS · STACK, T · STACK] -> [T, ROWS]: the sum of the products of equal parts; the rest is void."""
    product = product.reshape((ROWS, STACK, T, STACK))
    part = ct.arange(STACK, dtype=ct.int32)
    equal = part.reshape((1, STACK, 1, 1)) == part.reshape((1, 1, 1, STACK))
    return ct.transpose(ct.sum(ct.sum(ct.where(equal, product, 0.0), axis=3), axis=1))


def stacked_products(x, weight, bands, ahead, T, ROWS, STACK, WIDTH, TILES, AHEAD):
    """x · weightᵀ of each band, f32 [T, ROWS]; x bf16 [T, STACK, K / STACK]."""
    sums = tuple(ct.zeros((ROWS * STACK, T * STACK), dtype=ct.float32) for _ in ct.static_iter(bands))
    for k in ct.static_iter(range(AHEAD)):
        rows = ct.transpose(stacked_tile(x, 0, k, T, STACK, WIDTH))
        sums = tuple(ct.mma(ahead[i][k], rows, sums[i]) for i in ct.static_iter(range(len(bands))))
    for k in range(AHEAD, TILES):
        tiles = tuple(stacked_tile(weight, band, k, ROWS, STACK, WIDTH) for band in ct.static_iter(bands))
        rows = ct.transpose(stacked_tile(x, 0, k, T, STACK, WIDTH))
        sums = tuple(ct.mma(tiles[i], rows, sums[i]) for i in ct.static_iter(range(len(bands))))
    return tuple(unstacked(total, T, ROWS, STACK) for total in ct.static_iter(sums))


def scale_of_rows(squares, T, PARTS, WIDTH, EPS):
    """The norm's factor of each of T rows [T, 1]; PARTS is the power of two that the parts fit."""
    parts = ct.load(
        squares, index=(0, 0), shape=(PARTS, T), padding_mode=ct.PaddingMode.ZERO, allow_tma=False
    )
    return inverse_rms(ct.sum(parts, axis=0, keepdims=True), WIDTH, EPS)


# Prompts.


def prompt_tile(array, row, k, ROWS, WIDTH):
    """A tile [ROWS, WIDTH] by TMA, a few of them in flight."""
    return ct.load(array, index=(row, k), shape=(ROWS, WIDTH), latency=4, check_bounds=False)


def prompt_products(x, weight, bands, row, T, ROWS, WIDTH, TILES):
    """x · weightᵀ of each band, f32 [T, ROWS], for T rows of x bf16 [., K] from row · T on."""
    sums = tuple(ct.zeros((T, ROWS), dtype=ct.float32) for _ in ct.static_iter(bands))
    for k in range(TILES):
        left = prompt_tile(x, row, k, T, WIDTH)
        sums = tuple(
            ct.mma(left, ct.transpose(prompt_tile(weight, bands[i], k, ROWS, WIDTH)), sums[i])
            for i in ct.static_iter(range(len(bands)))
        )
    return sums


def scale_of_prompt(squares, row, T, PARTS, WIDTH, EPS):
    """The norm's factor of T rows from row · T on [T, 1], the same in blocks of any number of rows.

    The parts are added one by one: the compiler chooses the order of a sum over a dimension by the tile's
    shape, and T is not the same in every prompt program.
    """
    total = ct.zeros((1, T), dtype=ct.float32)
    for part in ct.static_iter(range(PARTS)):
        total = total + ct.load(squares, index=(part, row), shape=(1, T), allow_tma=False, check_bounds=False)
    return inverse_rms(total, WIDTH, EPS)
