"""Sampling on the device: temperature, then top-k, then top-p, then the inverse of the cumulative distribution.

No sort. The k-th largest logit, and the edge of the nucleus, are thresholds; each is found bit by bit among the 32-bit
keys that order as the floats do, four bits a pass over the row, which stays in the level-2 cache. Equal logits at a
threshold are all kept. The draw is `uniform[slot]`, so a stream's tokens depend on its own seed and position only.
A slot of temperature 0 gets the greedy choice.
"""

from __future__ import annotations

import cuda.tile as ct

from kernels.rmsnorm_head_argmax.kernel import feed_back, without_banned
from kernels.rmsnorm_qkv.kernel import Int

LEAST = -2147483648


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


def weights_of(x, highest, heat):
    """exp((x - highest) / temperature), 0 for minus infinity."""
    return ct.exp((x - highest) / heat)


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
    """One row a block: grid (rows, 1, 1). The greedy parts are `argmax_parts`'s."""
    row = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    slot = ct.load(slots, index=(row,), shape=(1,), allow_tma=False).item()
    maxima = ct.load(
        best, index=(row, 0), shape=(1, PARTS), padding_mode=ct.PaddingMode.NEG_INF, allow_tma=False
    )
    ids = ct.load(where, index=(row, 0), shape=(1, PARTS), padding_mode=ct.PaddingMode.ZERO, allow_tma=False)
    highest = ct.max(maxima, axis=1, keepdims=True)  # [1, 1]
    inside = ct.arange(PARTS, dtype=ct.int32).reshape((1, PARTS)) < where.shape[1]
    token = ct.min(ct.where((maxima == highest) & inside, ids, 2147483647), axis=1)
    heat = ct.load(temperature, index=(slot,), shape=(1,), allow_tma=False).item()
    if heat > 0.0:
        limit = ct.load(top_k, index=(slot,), shape=(1,), allow_tma=False).item()
        nucleus = ct.load(top_p, index=(slot,), shape=(1,), allow_tma=False).item()
        draw = ct.load(uniform, index=(slot,), shape=(1,), allow_tma=False).item()
        steps = ct.arange(16, dtype=ct.int32).reshape((16, 1))
        edge = ct.full((1, 1), LEAST, dtype=ct.int32)  # keys from here on are kept
        if (limit > 0) & (limit < VOCAB):
            for digit in range(8):
                shift = 28 - 4 * digit
                tries = edge + (
                    steps << shift
                )  # [16, 1], ascending: nothing above the 32 bits is carried out
                counts = ct.zeros((16, 1), dtype=ct.int32)
                for part in range(PARTS):
                    if part * WIDTH < VOCAB:
                        x = logits_part(logits, row, slot, part, drawn, until, banned, WIDTH, BANNED)
                        kept = (order(x) >= tries).astype(ct.int32)  # [16, WIDTH]
                        counts = counts + ct.sum(kept, axis=1, keepdims=True)
                taken = ct.sum((counts >= limit).astype(ct.int32), axis=0, keepdims=True) - 1
                edge = edge + (ct.maximum(taken, 0) << shift)
        mass = ct.zeros((1, 1), dtype=ct.float32)
        for part in range(PARTS):
            if part * WIDTH < VOCAB:
                x = logits_part(logits, row, slot, part, drawn, until, banned, WIDTH, BANNED)
                kept = ct.where(order(x) >= edge, weights_of(x, highest, heat), 0.0)
                mass = mass + ct.sum(kept, axis=1, keepdims=True)
        if nucleus < 1.0:
            wanted = mass * nucleus
            start = edge
            edge = ct.full((1, 1), LEAST, dtype=ct.int32)
            for digit in range(8):
                shift = 28 - 4 * digit
                tries = edge + (steps << shift)
                masses = ct.zeros((16, 1), dtype=ct.float32)
                for part in range(PARTS):
                    if part * WIDTH < VOCAB:
                        x = logits_part(logits, row, slot, part, drawn, until, banned, WIDTH, BANNED)
                        keys = order(x)
                        weight = ct.where(keys >= start, weights_of(x, highest, heat), 0.0)
                        masses = masses + ct.sum(ct.where(keys >= tries, weight, 0.0), axis=1, keepdims=True)
                taken = ct.sum((masses >= wanted).astype(ct.int32), axis=0, keepdims=True) - 1
                edge = edge + (ct.maximum(taken, 0) << shift)
            edge = ct.maximum(edge, start)
            mass = ct.zeros((1, 1), dtype=ct.float32)
            for part in range(PARTS):
                if part * WIDTH < VOCAB:
                    x = logits_part(logits, row, slot, part, drawn, until, banned, WIDTH, BANNED)
                    kept = ct.where(order(x) >= edge, weights_of(x, highest, heat), 0.0)
                    mass = mass + ct.sum(kept, axis=1, keepdims=True)
        # The first token whose cumulative weight, in the order of the vocabulary, passes the draw.
        point = mass * draw
        before = ct.zeros((1, 1), dtype=ct.float32)
        for part in range(PARTS):
            if part * WIDTH < VOCAB:
                x = logits_part(logits, row, slot, part, drawn, until, banned, WIDTH, BANNED)
                kept = ct.where(order(x) >= edge, weights_of(x, highest, heat), 0.0)
                after = before + ct.cumsum(kept, axis=1)
                named = (part * WIDTH + ct.arange(WIDTH, dtype=ct.int32)).reshape((1, WIDTH))
                reached = ct.where((kept > 0.0) & (after > point), named, 2147483647)
                first = ct.min(reached, axis=1)
                passed = ct.sum(kept, axis=1, keepdims=True) + before
                hit = (before <= point) & (first.reshape((1, 1)) < 2147483647)
                token = ct.where(hit.reshape((1,)), first, token)
                point = ct.where(hit, 3.0e38, point)
                before = passed
    feed_back(token, slot, tokens, positions, drawn, chosen, row, LENGTH, ADVANCE)
