"""The probes' sources: one block each, a few tiles, the plainest way of writing each route.

Weights `w` come first in a product, as on the decode path. Arrays are row-major; K lies in the last
dimension of both operands.
"""

from __future__ import annotations

import cuda.tile as ct

Int = ct.Constant[int]


def fp4_tile(array, k, M, K):
    """Two e2m1 numbers a byte, the lower bits first: uint8 [., K / 2] -> float4 [M, K]."""
    packed = ct.load(array, index=(0, k), shape=(M, K // 2))
    return ct.unpack_from_bytes(packed.reshape((M * K // 2,)), ct.float4_e2m1fn).reshape((M, K))


def nibbles(array, k, M, K):
    """Two numbers of four bits a byte, the lower first: uint8 [., K / 2] -> int32 [M, K]."""
    packed = ct.load(array, index=(0, k), shape=(M, K // 2)).astype(ct.int32).reshape((M, K // 2, 1))
    return ct.cat((packed & 15, packed >> 4), 2).reshape((M, K))


def from_half_bits(bits, factor):
    """Numbers whose bits stand where f16 has its own, int32 -> f32; `factor` makes up for the exponents."""
    return ct.bitcast(bits.astype(ct.uint16), ct.float16).astype(ct.float32) * factor


def product(w, x, total):
    """total + w · xᵀ."""
    return ct.mma(w, ct.transpose(x), total)


# Elementwise: a · b + a on tiles of the precision itself.


@ct.kernel
def elementwise(a, b, out, M: Int, N: Int):
    x = ct.load(a, index=(0, 0), shape=(M, N))
    y = ct.load(b, index=(0, 0), shape=(M, N))
    ct.store(out, index=(0, 0), tile=x * y + x)


@ct.kernel
def elementwise_tf32(a, b, out, M: Int, N: Int):
    x = ct.load(a, index=(0, 0), shape=(M, N)).astype(ct.tfloat32)
    y = ct.load(b, index=(0, 0), shape=(M, N)).astype(ct.tfloat32)
    ct.store(out, index=(0, 0), tile=(x * y + x).astype(ct.float32))


@ct.kernel
def elementwise_fp4(a, b, out, M: Int, N: Int):
    x, y = fp4_tile(a, 0, M, N), fp4_tile(b, 0, M, N)
    ct.store(out, index=(0, 0), tile=(x * y + x).astype(ct.float32))


# Products of tiles of the precision itself.


@ct.kernel
def mma(w, x, out, M: Int, N: Int, K: Int, TILES: Int):
    total = ct.zeros((M, N), dtype=out.dtype)
    for k in range(TILES):
        left = ct.load(w, index=(0, k), shape=(M, K))
        total = product(left, ct.load(x, index=(0, k), shape=(N, K)), total)
    ct.store(out, index=(0, 0), tile=total)


@ct.kernel
def mma_tf32(w, x, out, M: Int, N: Int, K: Int, TILES: Int):
    total = ct.zeros((M, N), dtype=ct.float32)
    for k in range(TILES):
        left = ct.load(w, index=(0, k), shape=(M, K)).astype(ct.tfloat32)
        total = product(left, ct.load(x, index=(0, k), shape=(N, K)).astype(ct.tfloat32), total)
    ct.store(out, index=(0, 0), tile=total)


@ct.kernel
def mma_fp4(w, x, out, M: Int, N: Int, K: Int, TILES: Int):
    total = ct.zeros((M, N), dtype=ct.float32)
    for k in range(TILES):
        total = product(fp4_tile(w, k, M, K), fp4_tile(x, k, N, K), total)
    ct.store(out, index=(0, 0), tile=total)


# Block-scaled: each BLOCK numbers along K share a scale.


@ct.kernel
def scaled(w, w_scale, x, x_scale, out, M: Int, N: Int, K: Int, TILES: Int, BLOCK: Int):
    total = ct.zeros((M, N), dtype=ct.float32)
    for k in range(TILES):
        left = ct.load(w, index=(0, k), shape=(M, K))
        right = ct.load(x, index=(0, k), shape=(N, K))
        s_left = ct.load(w_scale, index=(0, k), shape=(M, K // BLOCK))
        s_right = ct.load(x_scale, index=(0, k), shape=(N, K // BLOCK))
        total = ct.mma_scaled(left, s_left, ct.transpose(right), ct.transpose(s_right), total)
    ct.store(out, index=(0, 0), tile=total)


@ct.kernel
def scaled_tf32(w, w_scale, x, x_scale, out, M: Int, N: Int, K: Int, TILES: Int, BLOCK: Int):
    total = ct.zeros((M, N), dtype=ct.float32)
    for k in range(TILES):
        left = ct.load(w, index=(0, k), shape=(M, K)).astype(ct.tfloat32)
        right = ct.load(x, index=(0, k), shape=(N, K)).astype(ct.tfloat32)
        s_left = ct.load(w_scale, index=(0, k), shape=(M, K // BLOCK))
        s_right = ct.load(x_scale, index=(0, k), shape=(N, K // BLOCK))
        total = ct.mma_scaled(left, s_left, ct.transpose(right), ct.transpose(s_right), total)
    ct.store(out, index=(0, 0), tile=total)


@ct.kernel
def scaled_fp4(w, w_scale, x, x_scale, out, M: Int, N: Int, K: Int, TILES: Int, BLOCK: Int):
    total = ct.zeros((M, N), dtype=ct.float32)
    for k in range(TILES):
        left, right = fp4_tile(w, k, M, K), fp4_tile(x, k, N, K)
        s_left = ct.load(w_scale, index=(0, k), shape=(M, K // BLOCK))
        s_right = ct.load(x_scale, index=(0, k), shape=(N, K // BLOCK))
        total = ct.mma_scaled(left, s_left, ct.transpose(right), ct.transpose(s_right), total)
    ct.store(out, index=(0, 0), tile=total)


# Weight-only: weights become bf16, activations are bf16.


@ct.kernel
def converted(w, scale, x, out, M: Int, N: Int, K: Int, TILES: Int):
    total = ct.zeros((M, N), dtype=ct.float32)
    for k in range(TILES):
        left = ct.load(w, index=(0, k), shape=(M, K)).astype(ct.bfloat16)
        total = product(left, ct.load(x, index=(0, k), shape=(N, K)), total)
    ct.store(out, index=(0, 0), tile=total * ct.load(scale, index=(0, 0), shape=(M, 1)))


@ct.kernel
def shifted_fp8(w, scale, x, out, M: Int, N: Int, K: Int, TILES: Int, SHIFT: Int, FACTOR: Int):
    total = ct.zeros((M, N), dtype=ct.float32)
    for k in range(TILES):
        bits = ct.load(w, index=(0, k), shape=(M, K)).astype(ct.int32)
        half = ((bits & 128) << 8) | ((bits & 127) << SHIFT)
        left = from_half_bits(half, FACTOR).astype(ct.bfloat16)
        total = product(left, ct.load(x, index=(0, k), shape=(N, K)), total)
    ct.store(out, index=(0, 0), tile=total * ct.load(scale, index=(0, 0), shape=(M, 1)))


@ct.kernel
def converted_fp4(w, scale, x, out, M: Int, N: Int, K: Int, TILES: Int, BLOCK: Int):
    total = ct.zeros((M, N), dtype=ct.float32)
    for k in range(TILES):
        wide = fp4_tile(w, k, M, K).astype(ct.float32).reshape((M, K // BLOCK, BLOCK))
        factor = ct.load(scale, index=(0, k), shape=(M, K // BLOCK)).astype(ct.float32)
        left = (wide * factor.reshape((M, K // BLOCK, 1))).reshape((M, K)).astype(ct.bfloat16)
        total = product(left, ct.load(x, index=(0, k), shape=(N, K)), total)
    ct.store(out, index=(0, 0), tile=total)


@ct.kernel
def shifted_fp4(w, scale, x, out, M: Int, N: Int, K: Int, TILES: Int, BLOCK: Int):
    total = ct.zeros((M, N), dtype=ct.float32)
    for k in range(TILES):
        code = nibbles(w, k, M, K)
        wide = from_half_bits(((code & 8) << 12) | ((code & 7) << 9), 16384.0)
        bits = ct.load(scale, index=(0, k), shape=(M, K // BLOCK)).astype(ct.int32)
        factor = from_half_bits(bits << 7, 256.0).reshape((M, K // BLOCK, 1))
        left = (wide.reshape((M, K // BLOCK, BLOCK)) * factor).reshape((M, K)).astype(ct.bfloat16)
        total = product(left, ct.load(x, index=(0, k), shape=(N, K)), total)
    ct.store(out, index=(0, 0), tile=total)


@ct.kernel
def codebook(w, book, x, out, M: Int, N: Int, K: Int, TILES: Int, BLOCK: Int):
    total = ct.zeros((M, N), dtype=ct.float32)
    row = ct.arange(M, dtype=ct.int32).reshape((M, 1, 1))
    group = ct.arange(K // BLOCK, dtype=ct.int32).reshape((1, K // BLOCK, 1))
    for k in range(TILES):
        code = nibbles(w, k, M, K).reshape((M, K // BLOCK, BLOCK))
        left = ct.gather(book, (row, group + k * (K // BLOCK), code)).reshape((M, K))
        total = product(left, ct.load(x, index=(0, k), shape=(N, K)), total)
    ct.store(out, index=(0, 0), tile=total)
