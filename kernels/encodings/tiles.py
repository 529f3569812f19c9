"""Products of activations with encoded rows of weights, as tile functions. Two paths, as `products` has them.

One row of activations: the ordinary units. FP8 is widened to f32; 4-bit codes become bf16, two to an
instruction, and a lane adds the products of the four planes in bf16 before it goes on in f32: the sum of four
is rounded to 2^-9 of itself, as an activation is. The activations are declared once for each row of a tile
(`Array.repeated`), so that a lane loads just those that meet its codes; one row for all of them took a trip
through shared memory, and 12.3 us instead of 5.6 us for 2560 rows of 9728 int4 codes on an H100.

Up to 8 rows: codes become bf16 for the tensor core, weights first, several parts of a row stacked.

FORMAT names the encoding; what of `table` there is none of is `scale` bound again, and never read.
"""

from __future__ import annotations

import cuda.tile as ct

from kernels.encodings import FORMATS
from kernels.products import plain_tile, unstacked

E4M3, INT4, NVFP4 = (FORMATS[encoding] for encoding in ("fp8-e4m3", "int4-codebook", "nvfp4"))
# A factor of nvfp4 is multiplied with 2^118, its codes have 2^-126 as bf16 (whose exponents are 126 higher
# than theirs); what remains is made up for in f32, for the product would not fit bf16.
FACTOR_UNIT, NVFP4_UNIT = 2.0**118, 2.0**8


def halves(word):
    """u32 [R, W] as bf16 [R, 2 W], the low half first."""
    return ct.unpack_from_bytes(ct.pack_to_bytes(word), ct.bfloat16).reshape(
        (word.shape[0], 2 * word.shape[1])
    )


def sum_of_halves(pairs):
    """bf16 [R, 2 W] -> f32 [R, W], neighbours added."""
    word = ct.unpack_from_bytes(ct.pack_to_bytes(pairs), ct.uint32)
    word = word.reshape((pairs.shape[0], pairs.shape[1] // 2))
    return ct.bitcast(word << 16, ct.float32) + ct.bitcast(word & 0xFFFF0000, ct.float32)


def turned(word, plane):
    """The word turned left by four bits for each plane."""
    if plane == 0:
        return word
    return (word << (4 * plane)) | (word >> (32 - 4 * plane))


def ones():
    """bf16 1.0 in both halves of a word, in a register.

    The grid is one block deep, which the compiler does not know: so it masks and sets bits in one
    instruction, where with two constants it takes two.
    """
    return (ct.num_blocks(2) * 0x3F803F80).astype(ct.uint32)


def int4_values(word, plane, curve, one):
    """One plane of int4 codes as bf16 [R, 2 W]: u (u² + curve)."""
    u = halves((turned(word, plane) & 0x80708070) | one)
    return u * (u * u + curve)


def nvfp4_values(word, plane, factor):
    """One plane of e2m1 codes times their factors, bf16 [R, 2 W], in units of 1 / NVFP4_UNIT."""
    code = turned(word, plane)
    return halves(((code & 0x00080008) << 12) | ((code & 0x00070007) << 6)) * factor


def spread(factors):
    """e4m3 [R, W / 8] -> bf16 [R, 2 W]: each for 16 columns."""
    rows, count = factors.shape[0], factors.shape[1]
    wide = (factors.astype(ct.bfloat16) * FACTOR_UNIT).reshape((rows, count, 1))
    return ct.broadcast_to(wide, (rows, count, 16)).reshape((rows, 16 * count))


def scale_of_codes(scale, block, FORMAT, ROWS):
    """What the products of a block's rows are multiplied with, f32 [1, ROWS]; scale f32 [1, N]."""
    factors = plain_tile(scale, 0, block, 1, ROWS)
    return factors * NVFP4_UNIT if FORMAT == NVFP4 else factors


# One row.


def row_curves(table, bands, FORMAT, ROWS):
    """The int4 curves of each band's rows, bf16 [ROWS, 1]; nothing for other encodings. table bf16 [N, 1]."""
    if FORMAT == INT4:
        return tuple(plain_tile(table, band, 0, ROWS, 1) for band in ct.static_iter(bands))
    return bands


def four_bit_sums(x, tiles, table, bands, curves, one, k, FORMAT, ROWS, WIDTH):
    """f32 [ROWS, WIDTH] of each band: what tile k adds. x bf16 [ROWS, TILES, 4, 2 WIDTH]."""
    row = four_bit_row(x, k, 0, ROWS, WIDTH)
    sums = tuple(
        four_bit_values(tiles[i], 0, table, bands[i], curves[i], one, k, FORMAT, ROWS, WIDTH) * row
        for i in ct.static_iter(range(len(bands)))
    )
    for plane in ct.static_iter(range(1, 4)):
        row = four_bit_row(x, k, plane, ROWS, WIDTH)
        sums = tuple(
            sums[i]
            + four_bit_values(tiles[i], plane, table, bands[i], curves[i], one, k, FORMAT, ROWS, WIDTH) * row
            for i in ct.static_iter(range(len(bands)))
        )
    return tuple(sum_of_halves(total) for total in ct.static_iter(sums))


def four_bit_row(x, k, plane, ROWS, WIDTH):
    """The activations that meet one plane of tile k, bf16 [ROWS, 2 WIDTH]."""
    tile = ct.load(
        x, index=(0, k, plane, 0), shape=(ROWS, 1, 1, 2 * WIDTH), allow_tma=False, check_bounds=False
    )
    return tile.reshape((ROWS, 2 * WIDTH))


def four_bit_values(tile, plane, table, band, curve, one, k, FORMAT, ROWS, WIDTH):
    """One plane of a tile of words, bf16 [ROWS, 2 WIDTH]; nvfp4's table e4m3 [N, TILES, 4, WIDTH / 8]."""
    if FORMAT == INT4:
        return int4_values(tile, plane, curve, one)
    factors = ct.load(
        table,
        index=(band, k, plane, 0),
        shape=(ROWS, 1, 1, WIDTH // 8),
        allow_tma=False,
        check_bounds=False,
    )
    return nvfp4_values(tile, plane, spread(factors.reshape((ROWS, WIDTH // 8))))


def added(sums, x, tiles, table, bands, curves, one, k, FORMAT, ROWS, WIDTH):
    """The sums f32 [ROWS, WIDTH] of each band with tile k."""
    if FORMAT == E4M3:
        row = plain_tile(x, 0, k, ROWS, WIDTH).astype(ct.float32)
        more = tuple(tile.astype(ct.float32) * row for tile in ct.static_iter(tiles))
    else:
        more = four_bit_sums(x, tiles, table, bands, curves, one, k, FORMAT, ROWS, WIDTH)
    return tuple(sums[i] + more[i] for i in ct.static_iter(range(len(bands))))


def encoded_products(x, codes, table, bands, ahead, curves, FORMAT, ROWS, WIDTH, TILES, AHEAD):
    """x · values of each band's rows, f32 [1, ROWS], without their scale.

    codes e4m3 [N, K] or u32 [N, K / 8]; WIDTH of them a tile, and for the words of 4-bit codes just those of
    the encoding's own tile.
    """
    one = ones()
    sums = tuple(ct.zeros((ROWS, WIDTH), dtype=ct.float32) for _ in ct.static_iter(bands))
    for k in ct.static_iter(range(AHEAD)):
        tiles = tuple(ahead[i][k] for i in ct.static_iter(range(len(bands))))
        sums = added(sums, x, tiles, table, bands, curves, one, k, FORMAT, ROWS, WIDTH)
    for k in range(AHEAD, TILES):
        tiles = tuple(plain_tile(codes, band, k, ROWS, WIDTH) for band in ct.static_iter(bands))
        sums = added(sums, x, tiles, table, bands, curves, one, k, FORMAT, ROWS, WIDTH)
    return tuple(ct.transpose(ct.sum(total, axis=1, keepdims=True)) for total in ct.static_iter(sums))


# Up to 8 rows.


def stacked_codes(codes, band, k, ROWS, STACK, WIDTH):
    """A tile of words of each of STACK parts, one below the other; codes u32 [N, TILES, STACK, WIDTH]."""
    tile = ct.load(codes, index=(band, k, 0, 0), shape=(ROWS, 1, STACK, WIDTH), latency=8, check_bounds=False)
    return tile.reshape((ROWS * STACK, WIDTH))


def first_stacked_codes(codes, bands, ROWS, STACK, WIDTH, AHEAD):
    """The first AHEAD tiles of each band."""
    return tuple(
        tuple(stacked_codes(codes, band, k, ROWS, STACK, WIDTH) for k in ct.static_iter(range(AHEAD)))
        for band in ct.static_iter(bands)
    )


def stacked_row(x, k, plane, T, STACK, WIDTH):
    """Activations [WIDTH, T · STACK] for one plane of tile k; x bf16 [T, TILES, planes, STACK, WIDTH]."""
    tile = ct.load(x, index=(0, k, plane, 0, 0), shape=(T, 1, 1, STACK, WIDTH), check_bounds=False)
    return ct.transpose(tile.reshape((T * STACK, WIDTH)))


def stacked_values(tile, plane, table, band, one, k, FORMAT, ROWS, STACK, WIDTH):
    """A plane of a tile as bf16 [ROWS · STACK, ...]; FP8 has one plane of 4 WIDTH columns, others 2 WIDTH.

    table: bf16 [N, 1] of int4, e4m3 [N, TILES, 4, STACK, WIDTH / 8] of nvfp4.
    """
    if FORMAT == E4M3:
        values = ct.unpack_from_bytes(ct.pack_to_bytes(tile), ct.float8_e4m3fn)
        return values.reshape((ROWS * STACK, 4 * WIDTH)).astype(ct.bfloat16)
    if FORMAT == INT4:
        curve = plain_tile(table, band, 0, ROWS, 1).reshape((ROWS, 1, 1))
        curve = ct.broadcast_to(curve, (ROWS, STACK, 1)).reshape((ROWS * STACK, 1))
        return int4_values(tile, plane, curve, one)
    factors = ct.load(
        table,
        index=(band, k, plane, 0, 0),
        shape=(ROWS, 1, 1, STACK, WIDTH // 8),
        allow_tma=False,
        check_bounds=False,
    )
    return nvfp4_values(tile, plane, spread(factors.reshape((ROWS * STACK, WIDTH // 8))))


def stacked_added(sums, x, tiles, table, bands, one, k, FORMAT, T, ROWS, STACK, WIDTH):
    """The sums f32 [ROWS · STACK, T · STACK] of each band with tile k."""
    columns = 4 * WIDTH if FORMAT == E4M3 else 2 * WIDTH
    for plane in ct.static_iter(range(1 if FORMAT == E4M3 else 4)):
        row = stacked_row(x, k, plane, T, STACK, columns)
        sums = tuple(
            ct.mma(
                stacked_values(tiles[i], plane, table, bands[i], one, k, FORMAT, ROWS, STACK, WIDTH),
                row,
                sums[i],
            )
            for i in ct.static_iter(range(len(bands)))
        )
    return sums


def encoded_stacked_products(x, codes, table, bands, ahead, FORMAT, T, ROWS, STACK, WIDTH, TILES, AHEAD):
    """x · values of each band's rows, f32 [T, ROWS], without their scale; WIDTH words of a part a tile."""
    one = ones()
    sums = tuple(ct.zeros((ROWS * STACK, T * STACK), dtype=ct.float32) for _ in ct.static_iter(bands))
    for k in ct.static_iter(range(AHEAD)):
        tiles = tuple(ahead[i][k] for i in ct.static_iter(range(len(bands))))
        sums = stacked_added(sums, x, tiles, table, bands, one, k, FORMAT, T, ROWS, STACK, WIDTH)
    for k in range(AHEAD, TILES):
        tiles = tuple(stacked_codes(codes, band, k, ROWS, STACK, WIDTH) for band in ct.static_iter(bands))
        sums = stacked_added(sums, x, tiles, table, bands, one, k, FORMAT, T, ROWS, STACK, WIDTH)
    return tuple(unstacked(total, T, ROWS, STACK) for total in ct.static_iter(sums))
