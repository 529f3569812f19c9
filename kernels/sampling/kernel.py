"""Sampling on the device: temperature, top-k, top-p, then the inverse of the cumulative distribution.

No sort. The k-th largest logit, and the edge of the nucleus, are thresholds; each is found bit by bit
among the 32-bit keys that order as the floats do, four bits a pass over the row, which stays in the
level-2 cache. Equal logits at a threshold are all kept. The draw is `uniform[slot]`, so a stream's tokens
depend on its own seed and position only. A slot of temperature 0 gets the greedy choice.
"""

from __future__ import annotations

import cuda.tile as ct

from kernels.rmsnorm_head_argmax.kernel import feed_back, without_banned
from kernels.products import Int

LEAST, LARGEST = -2147483648, 2147483647


def order(x):
    """int32 keys that order as the f32 values do."""
    bits = ct.bitcast(x, ct.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def logits_part(logits, row, slot, part, drawn, until, banned, WIDTH, BANNED):
    """Logits [1, WIDTH] of one part of the vocabulary, banned ones and those past its end minus infinity."""
    x = ct.load(
        logits,
        index=(row, part),
        shape=(1, WIDTH),
        padding_mode=ct.PaddingMode.NEG_INF,
        allow_tma=False,
    )
    return without_banned(x, part * WIDTH, slot, drawn, until, banned, WIDTH, BANNED)


def kept_weights(x, edge, highest, heat):
    """exp((x - highest) / temperature) where the key is `edge` or more, else 0."""
    return ct.where(order(x) >= edge, ct.exp((x - highest) / heat), 0.0)


def digit_tries(edge, digit):
    """The 16 keys [16, 1] that continue `edge` with this digit, ascending; digit 0 is the highest of 8.

    Sixteen steps of 2^28 from the least key pass over zero and stay within 32 bits.
    """
    return edge + (ct.arange(16, dtype=ct.int32).reshape((16, 1)) << (28 - 4 * digit))


def digit_taken(edge, reached, digit):
    """`edge` continued with the last of the 16 tries that still reaches the target."""
    taken = ct.sum(reached.astype(ct.int32), axis=0, keepdims=True) - 1
    return edge + (ct.maximum(taken, 0) << (28 - 4 * digit))


def kept_mass(logits, row, slot, drawn, until, banned, edge, highest, heat, count, WIDTH, BANNED):
    """Sum of the kept weights of a row [1, 1]."""
    mass = ct.zeros((1, 1), dtype=ct.float32)
    for part in range(count):
        x = logits_part(logits, row, slot, part, drawn, until, banned, WIDTH, BANNED)
        mass = mass + ct.sum(kept_weights(x, edge, highest, heat), axis=1, keepdims=True)
    return mass


@ct.kernel
def sample(
    logits,
    best,
    where,
    slots,
    temperature,
    top_k,
    top_p,
    uniform,
    until,
    banned,
    parts,
    tokens,
    positions,
    drawn,
    chosen,
    VOCAB: Int,
    WIDTH: Int,
    PARTS: Int,
    BANNED: Int,
    LENGTH: Int,
    ADVANCE: Int,
):
    """One row a block: grid (rows, 1, 1). best and where are `argmax_parts`'s.

    parts i32 [1]: how many parts of WIDTH the vocabulary has. It is read from memory because a loop of a
    known length would be unrolled: with 149 parts the compiler then took minutes and gigabytes.
    """
    row = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    slot = ct.load(slots, index=(row,), shape=(1,), allow_tma=False).item()
    count = ct.load(parts, index=(0,), shape=(1,), allow_tma=False).item()
    maxima = ct.load(
        best, index=(row, 0), shape=(1, PARTS), padding_mode=ct.PaddingMode.NEG_INF, allow_tma=False
    )
    ids = ct.load(where, index=(row, 0), shape=(1, PARTS), padding_mode=ct.PaddingMode.ZERO, allow_tma=False)
    highest = ct.max(maxima, axis=1, keepdims=True)  # [1, 1]
    inside = ct.arange(PARTS, dtype=ct.int32).reshape((1, PARTS)) < where.shape[1]
    token = ct.min(ct.where((maxima == highest) & inside, ids, LARGEST), axis=1)
    heat = ct.load(temperature, index=(slot,), shape=(1,), allow_tma=False).item()
    if heat > 0.0:
        limit = ct.load(top_k, index=(slot,), shape=(1,), allow_tma=False).item()
        nucleus = ct.load(top_p, index=(slot,), shape=(1,), allow_tma=False).item()
        draw = ct.load(uniform, index=(slot,), shape=(1,), allow_tma=False).item()
        edge = ct.full((1, 1), LEAST, dtype=ct.int32)  # keys from here on are kept
        if (limit > 0) & (limit < VOCAB):
            for digit in range(8):
                tries = digit_tries(edge, digit)
                counts = ct.zeros((16, 1), dtype=ct.int32)
                for part in range(count):
                    x = logits_part(logits, row, slot, part, drawn, until, banned, WIDTH, BANNED)
                    counts = counts + ct.sum((order(x) >= tries).astype(ct.int32), axis=1, keepdims=True)
                edge = digit_taken(edge, counts >= limit, digit)
        mass = kept_mass(logits, row, slot, drawn, until, banned, edge, highest, heat, count, WIDTH, BANNED)
        if nucleus < 1.0:
            start = edge
            edge = ct.full((1, 1), LEAST, dtype=ct.int32)
            for digit in range(8):
                tries = digit_tries(edge, digit)
                masses = ct.zeros((16, 1), dtype=ct.float32)
                for part in range(count):
                    x = logits_part(logits, row, slot, part, drawn, until, banned, WIDTH, BANNED)
                    weights = kept_weights(x, start, highest, heat)
                    reached = ct.where(order(x) >= tries, weights, 0.0)  # [16, WIDTH]
                    masses = masses + ct.sum(reached, axis=1, keepdims=True)
                edge = digit_taken(edge, masses >= mass * nucleus, digit)
            edge = ct.maximum(edge, start)
            mass = kept_mass(
                logits, row, slot, drawn, until, banned, edge, highest, heat, count, WIDTH, BANNED
            )
        # The first token whose cumulative weight, in the order of the vocabulary, passes the draw.
        point = mass * draw
        before = ct.zeros((1, 1), dtype=ct.float32)
        for part in range(count):
            x = logits_part(logits, row, slot, part, drawn, until, banned, WIDTH, BANNED)
            weights = kept_weights(x, edge, highest, heat)
            after = before + ct.cumsum(weights, axis=1)
            named = (part * WIDTH + ct.arange(WIDTH, dtype=ct.int32)).reshape((1, WIDTH))
            first = ct.min(ct.where((weights > 0.0) & (after > point), named, LARGEST), axis=1)
            hit = first < LARGEST
            token = ct.where(hit, first, token)
            point = ct.where(hit.reshape((1, 1)), 3.0e38, point)  # found: nothing passes it any more
            before = before + ct.sum(weights, axis=1, keepdims=True)
    feed_back(token, slot, tokens, positions, drawn, chosen, row, LENGTH, ADVANCE)
