"""Sampling on the device: temperature, top-k, top-p, then the inverse of the cumulative distribution.

No sort. The k-th largest logit, and the edge of the nucleus, are thresholds among the 32-bit keys that order
as the floats do; each is found in eight digits of four bits. One launch of `search_digit` tries one digit,
with the vocabulary spread over many blocks: each leaves what its part has at or above the 16 keys that may
come next, its number of tokens for top-k and their weight for top-p. The blocks of the next launch add the
parts up, all of them in the same order, so all take the same digit and a row's result depends on that row
alone. What the last launch leaves says which part holds the drawn token, so `draw` reads that part only.

A row's search: `search` i32 [rows, 3] is how many launches it has behind it, the key that top-k keeps from,
and the key found so far; `goal` f32 [rows] is the weight that the nucleus must reach; `above` f32 [rows,
parts, 16] are the last launch's sums. A launch reads one set of them and writes the other one. Counts are
exact in f32: no vocabulary has 2^24 tokens. A launch that has nothing to find for a row, and a block whose
part lies below every try, end at once.

Equal logits at a threshold are all kept. The draw is `uniform[slot]`, so a stream's tokens depend on its own
seed and position only. A slot of temperature 0 gets the greedy choice, and its row's search never begins.
"""

from __future__ import annotations

import cuda.tile as ct

from kernels.products import Int
from kernels.rmsnorm_head_argmax.kernel import feed_back, greedy_choice, row_maxima, without_banned

LEAST, LARGEST = -2147483648, 2147483647
LOG2_E = 1.4426950408889634
BELOW_ONE = 0.999999940395355  # the largest f32 that is
DIGITS = 8  # of one search; top-k's come first


def order(x):
    """int32 keys that order as the f32 values do, the two zeros being one."""
    bits = ct.bitcast(x, ct.int32)
    return ct.where(x == 0.0, 0, bits ^ ((bits >> 31) & 0x7FFFFFFF))


def logits_part(logits, row, part, WIDTH):
    """Logits [1, WIDTH] of one part of the vocabulary, minus infinity past its end."""
    return ct.load(
        logits,
        index=(row, part),
        shape=(1, WIDTH),
        padding_mode=ct.PaddingMode.NEG_INF,
        allow_tma=False,
    )


def weights_of(x, highest, heat):
    """exp((x - highest) / heat). The limit keeps 0 · inf away from temperatures next to nothing."""
    return ct.exp2((x - highest) * ct.minimum(LOG2_E / heat, 3.0e38))


def one(array, index):
    """One element of a vector as a scalar."""
    return ct.load(array, index=(index,), shape=(1,), allow_tma=False).item()


def state_of(search, row, index):
    """One of the three integers of a row's search as a scalar."""
    return ct.load(search, index=(row, index), shape=(1, 1), allow_tma=False).item()


def leave(search, row, index, value):
    """Write one of them."""
    tile = ct.full((1, 1), value, dtype=ct.int32)
    ct.store(search, index=(row, index), tile=tile, allow_tma=False)


def shift_of(step):
    """How far left the digit of this launch stands; the first of a search is the highest."""
    return 28 - 4 * (step & (DIGITS - 1))


def cuts(limit, VOCAB):
    """Whether a top-k of `limit` can leave a token out."""
    return (limit > 0) & (limit < VOCAB)


def resumed(search, goal, above, row, limit, nucleus, VOCAB, PARTS):
    """Where a row's search stands, with the digit that the last launch tried: step, start, edge, goal.

    Then that digit, and each part's sums f32 [PARTS, 16], for `draw`. Where the search has not begun, or the
    row has no such limit, nobody made sums, or they decide nothing: the digit is 0.
    """
    step, start, edge = state_of(search, row, 0), state_of(search, row, 1), state_of(search, row, 2)
    wanted = one(goal, row)
    sums = ct.load(
        above,
        index=(row, 0, 0),
        shape=(1, PARTS, 16),
        padding_mode=ct.PaddingMode.ZERO,
        allow_tma=False,
    ).reshape((PARTS, 16))
    totals = ct.sum(sums, axis=0, keepdims=True)  # [1, 16], descending: the first is all that top-k keeps
    searched = (step > 0) & ct.where(step <= DIGITS, cuts(limit, VOCAB), nucleus < 1.0)
    whole = ct.max(totals, axis=1).item()
    wanted = ct.where(searched & (step == DIGITS + 1), whole * nucleus, wanted)
    target = ct.where(step <= DIGITS, limit.astype(ct.float32), wanted)
    reached = ct.sum((totals >= target).astype(ct.int32), axis=1).item()
    digit = ct.where(searched, ct.maximum(reached - 1, 0), 0)
    edge = edge + (digit << shift_of(step + DIGITS - 1))
    begins = (step == 0) | (step == DIGITS)
    start = ct.where(step == 0, LEAST, ct.where(begins, edge, start))
    return step, start, ct.where(begins, LEAST, edge), wanted, digit, sums


@ct.kernel
def search_digit(
    logits,
    best,
    slots,
    temperature,
    top_k,
    top_p,
    drawn,
    until,
    banned,
    search,
    goal,
    above,
    next_search,
    next_goal,
    next_above,
    VOCAB: Int,
    WIDTH: Int,
    PARTS: Int,
    BANNED: Int,
):
    """The next digit of every row's search, WIDTH tokens of one row a block. Grid (parts, rows).

    best f32 [rows, parts] is `argmax_parts`'s, PARTS the power of two that they fit. The host alone writes
    the slots' settings, so they are read before the wait.
    """
    part, row = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_launch_dependents()
    slot = one(slots, row)
    heat, limit, nucleus = one(temperature, slot), one(top_k, slot), one(top_p, slot)
    ct.grid_dependency_control_wait()
    if heat > 0.0:
        x = logits_part(logits, row, part, WIDTH)  # asked for at once, although a block may not need it
        maxima = row_maxima(best, row, PARTS)
        highest = ct.max(maxima, axis=1, keepdims=True)
        here = ct.load(best, index=(row, part), shape=(1, 1), allow_tma=False)
        step, start, edge, wanted, _, _ = resumed(search, goal, above, row, limit, nucleus, VOCAB, PARTS)
        if part == 0:
            leave(next_search, row, 0, step + 1)
            leave(next_search, row, 1, start)
            leave(next_search, row, 2, edge)
            ct.store(next_goal, index=(row,), tile=ct.full((1,), wanted, dtype=ct.float32), allow_tma=False)
        last = step == 2 * DIGITS - 1  # `draw` needs its sums of every row
        if ct.where(step < DIGITS, cuts(limit, VOCAB), (nucleus < 1.0) | last):
            sums = ct.zeros((1, 1, 16), dtype=ct.float32)
            if (order(here) >= ct.maximum(edge, start)).item():  # else all of the part is below every try
                x = without_banned(x, part * WIDTH, slot, drawn, until, banned, WIDTH, BANNED)
                # Sixteen steps of 2^28 from the least key pass over zero and stay within 32 bits.
                tries = edge + (ct.arange(16, dtype=ct.int32).reshape((16, 1)) << shift_of(step))
                weights = ct.where(step < DIGITS, 1.0, weights_of(x, highest, heat))
                reached = ct.where(order(x) >= ct.maximum(tries, start), weights, 0.0)  # [16, WIDTH]
                sums = ct.sum(reached, axis=1).reshape((1, 1, 16))
            ct.store(next_above, index=(row, part, 0), tile=sums, allow_tma=False)


@ct.kernel
def draw(
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
    search,
    goal,
    above,
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
    """The first token whose cumulative weight, in the vocabulary's order, passes the draw. Grid (rows,).

    best and where are `argmax_parts`'s. The row's search is set back to its beginning for the next step.
    """
    row = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    slot = one(slots, row)
    heat, limit, nucleus = one(temperature, slot), one(top_k, slot), one(top_p, slot)
    chance = ct.minimum(one(uniform, slot), BELOW_ONE)  # the host's 53 bits may have been rounded up to 1
    ct.grid_dependency_control_wait()
    highest, token = greedy_choice(best, where, row, PARTS)
    if heat > 0.0:
        _, start, edge, _, digit, sums = resumed(search, goal, above, row, limit, nucleus, VOCAB, PARTS)
        edge = ct.maximum(edge, start)
        column = ct.arange(16, dtype=ct.int32).reshape((1, 16)) == digit
        masses = ct.sum(ct.where(column, sums, 0.0), axis=1)  # [PARTS]
        upto = ct.cumsum(masses, axis=0)
        point = (ct.max(upto, axis=0) * chance).item()
        parts = ct.arange(PARTS, dtype=ct.int32)
        # A scan may round so that only parts without weight pass: then it is the last one with any.
        first = ct.min(ct.where((upto > point) & (masses > 0.0), parts, LARGEST), axis=0)
        part = ct.minimum(first, ct.max(ct.where(masses > 0.0, parts, 0), axis=0)).item()
        before = ct.sum(ct.where(parts == part - 1, upto, 0.0), axis=0).item()
        x = logits_part(logits, row, part, WIDTH)
        x = without_banned(x, part * WIDTH, slot, drawn, until, banned, WIDTH, BANNED)
        weights = ct.where(order(x) >= edge, weights_of(x, highest, heat), 0.0)
        passed = before + ct.cumsum(weights, axis=1) > point
        ids = (part * WIDTH + ct.arange(WIDTH, dtype=ct.int32)).reshape((1, WIDTH))
        first = ct.min(ct.where((weights > 0.0) & passed, ids, LARGEST), axis=1)
        last = ct.max(ct.where(weights > 0.0, ids, -1), axis=1)
        # Where rounding lets none pass although the part's sum does, it is the part's last one. No token has
        # weight where top_p asks for none: then it is the greedy one.
        token = ct.where(last < 0, token, ct.minimum(first, last))
        leave(search, row, 0, 0)
    feed_back(token, slot, tokens, positions, drawn, chosen, row, LENGTH, ADVANCE)
