"""The greedy choice in two stages, and its feedback. The logits come from `rmsnorm_qkv`'s kernels.

Everything about a stream that a step needs stays on the device: its token, its position, how many tokens
it has generated, and which tokens may not come yet. A slot whose position is negative, or past the cache,
is left alone.
"""

from __future__ import annotations

import cuda.tile as ct

from kernels.products import Int


def without_banned(x, first, slot, drawn, until, banned, WIDTH, BANNED):
    """Logits [1, WIDTH] of tokens `first` on, minus infinity for those banned from this draw of the slot."""
    ids = (first + ct.arange(WIDTH, dtype=ct.int32)).reshape((1, WIDTH))
    early = ct.load(drawn, index=(slot,), shape=(1,), allow_tma=False) < ct.load(
        until, index=(slot,), shape=(1,), allow_tma=False
    )
    for i in ct.static_iter(range(BANNED)):
        token = ct.load(banned, index=(slot, i), shape=(1, 1), allow_tma=False)
        x = ct.where((ids == token) & early.reshape((1, 1)), -float("inf"), x)
    return x


@ct.kernel
def argmax_parts(logits, slots, drawn, until, banned, best, where, WIDTH: Int, BANNED: Int):
    """The maximum and its lowest index among WIDTH logits: best f32, where i32 [rows, parts]."""
    part, row = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    slot = ct.load(slots, index=(row,), shape=(1,), allow_tma=False).item()
    x = ct.load(
        logits,
        index=(row, part),
        shape=(1, WIDTH),
        padding_mode=ct.PaddingMode.NEG_INF,
        allow_tma=False,
    )
    x = without_banned(x, part * WIDTH, slot, drawn, until, banned, WIDTH, BANNED)
    index = ct.argmax(x, axis=1).reshape((1, 1)) + part * WIDTH
    ct.store(best, index=(row, part), tile=ct.max(x, axis=1, keepdims=True), allow_tma=False)
    ct.store(where, index=(row, part), tile=index, allow_tma=False)


def feed_back(token, slot, slots_tokens, positions, drawn, chosen, row, LENGTH, ADVANCE):
    """Make `token` [1] the slot's next input if the slot is live; `chosen` gets it, or -1."""
    position = ct.load(positions, index=(slot,), shape=(1,), allow_tma=False)
    live = (position >= 0) & (position + ADVANCE <= LENGTH)
    old = ct.load(slots_tokens, index=(slot,), shape=(1,), allow_tma=False)
    draw = ct.load(drawn, index=(slot,), shape=(1,), allow_tma=False)
    ct.store(chosen, index=(row,), tile=ct.where(live, token, -1), allow_tma=False)
    ct.store(slots_tokens, index=(slot,), tile=ct.where(live, token, old), allow_tma=False)
    ct.store(positions, index=(slot,), tile=ct.where(live, position + ADVANCE, position), allow_tma=False)
    ct.store(drawn, index=(slot,), tile=ct.where(live, draw + 1, draw), allow_tma=False)


def row_maxima(best, row, PARTS):
    """The maxima of a row's parts [1, PARTS]; PARTS is the power of two that they fit."""
    return ct.load(
        best, index=(row, 0), shape=(1, PARTS), padding_mode=ct.PaddingMode.NEG_INF, allow_tma=False
    )


def greedy_choice(best, where, row, PARTS):
    """The highest of a row's parts [1, 1] and the token it belongs to [1], the lowest of equal ones."""
    maxima = row_maxima(best, row, PARTS)
    ids = ct.load(where, index=(row, 0), shape=(1, PARTS), padding_mode=ct.PaddingMode.ZERO, allow_tma=False)
    highest = ct.max(maxima, axis=1, keepdims=True)
    inside = ct.arange(PARTS, dtype=ct.int32).reshape((1, PARTS)) < where.shape[1]
    return highest, ct.min(ct.where((maxima == highest) & inside, ids, 2147483647), axis=1)


@ct.kernel
def argmax_choose(
    best, where, slots, tokens, positions, drawn, chosen, PARTS: Int, LENGTH: Int, ADVANCE: Int
):
    """The row's choice from its parts, fed back; ADVANCE is 1 for a decode step, 0 behind a prompt."""
    row = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    slot = ct.load(slots, index=(row,), shape=(1,), allow_tma=False).item()
    _, token = greedy_choice(best, where, row, PARTS)
    feed_back(token, slot, tokens, positions, drawn, chosen, row, LENGTH, ADVANCE)
