"""Attention over a slot's static cache: per-head norm and rotary embedding, append, grouped-query softmax.

Decode splits a slot's keys over SPLITS blocks (flash-decoding; Dao et al., 2023): split s takes key tiles
s, s + SPLITS and so on, and the last block of a head to finish joins the parts in their order, so the sum
never depends on which one that was. The new position's key and value come from registers: nobody waits for
the cache. Everything that does not depend on the projection just before (the position, the older keys and
values) is loaded before the wait; `embedding` says why that is safe. Scores are in base 2: the query
carries log2(e) / sqrt(D).

Shapes: qkv [T, Hq + 2 Hkv, D], keys and values [slots, Hkv, N, D], rotary [N, D] as cosines, sines; D =
128. Rows of the cache beyond a slot's position are never used, whatever they hold. G = Hq / Hkv query
heads share a key head.
"""

from __future__ import annotations

import cuda.tile as ct

from kernels.products import Float, Int, gain_tile

LOWEST = -1.0e30  # a score no real one comes near; minus infinity would make NaN of 0 · inf


def half_heads(qkv, row, head, part, HEADS):
    """Half `part` of the vectors of HEADS heads, f32 [HEADS, D/2]; `head` counts groups of HEADS."""
    tile = ct.load(qkv, index=(row, head, part), shape=(1, HEADS, 64), allow_tma=False, check_bounds=False)
    return tile.reshape((HEADS, 64)).astype(ct.float32)


def norm_turn(low, high, norm, cos, sin, EPS):
    """Both halves of heads [., D/2], normed by `norm` [D] and turned by the angles [1, D/2]."""
    scale = ct.rsqrt(ct.sum(low * low + high * high, axis=1, keepdims=True) * (1.0 / 128) + EPS)
    low = low * scale * gain_tile(norm, 0, 64)
    high = high * scale * gain_tile(norm, 1, 64)
    return low * cos - high * sin, high * cos + low * sin


def cache_tile(cache, slot, head, tile, KEYS):
    """KEYS rows of the cache, bf16 [KEYS, D]; plain loads, so that they may be held in registers."""
    rows = ct.load(
        cache,
        index=(slot, head, tile, 0),
        shape=(1, 1, KEYS, 128),
        latency=4,
        allow_tma=False,
        check_bounds=False,
    )
    return rows.reshape((KEYS, 128))


def append(cache, slot, head, place, row):
    """Write one row [1, D] of the cache."""
    ct.store(
        cache,
        index=(slot, head, place, 0),
        tile=row.astype(ct.bfloat16).reshape((1, 1, 1, 128)),
        allow_tma=False,
        check_bounds=False,
    )


def append_half(cache, slot, head, place, part, row):
    """Write half a row, bf16 [1, D/2], of the cache."""
    ct.store(
        cache,
        index=(slot, head, place, part),
        tile=row.reshape((1, 1, 1, 64)),
        allow_tma=False,
        check_bounds=False,
    )


def place_of(positions, slot, LENGTH):
    """The slot's position if it is live, else -1."""
    place = ct.load(positions, index=(slot,), shape=(1,), allow_tma=False).item()
    return ct.where((place >= 0) & (place < LENGTH), place, -1)


def leave_part(parts, tops, sums, slot, group, split, part, top, total, HEADS):
    """Write one split's unnormalised output [HEADS, D], maximum and sum [HEADS, 1]."""
    leave_tile(parts, slot, group, split, part, HEADS, 128)
    leave_tile(tops, slot, group, split, top, HEADS, 1)
    leave_tile(sums, slot, group, split, total, HEADS, 1)


def leave_tile(array, slot, group, split, tile, HEADS, WIDTH):
    """Write one split's [HEADS, WIDTH]."""
    ct.store(
        array,
        index=(slot, group, split, 0),
        tile=tile.reshape((1, HEADS, 1, WIDTH)),
        allow_tma=False,
        check_bounds=False,
    )


def join_last(parts, tops, sums, arrived, out, slot, group, place, HEADS, KEYS, SPLITS):
    """Count this block in; the last one of its head group writes the group's output from all parts."""
    before = ct.atomic_add(arrived, (slot, group), 1, check_bounds=False)
    if before.item() == SPLITS - 1:
        ct.scatter(arrived, (slot, group), 0)
        used = (ct.arange(SPLITS, dtype=ct.int32) * KEYS).reshape((SPLITS, 1)) <= place
        # Head by head: tileiras 13.4 makes a misaligned access of a [2, SPLITS, 1] tile.
        for i in ct.static_iter(range(HEADS)):
            head = group * HEADS + i
            part = split_tile(parts, slot, head, SPLITS, 128)
            top = ct.where(used, split_tile(tops, slot, head, SPLITS, 1), LOWEST)
            total = ct.where(used, split_tile(sums, slot, head, SPLITS, 1), 0.0)
            share = ct.where(used, ct.exp2(top - ct.max(top, axis=0, keepdims=True)), 0.0)
            whole = ct.maximum(ct.sum(total * share, axis=0, keepdims=True), 1.0e-30)
            mixed = ct.sum(ct.where(used, part, 0.0) * share, axis=0, keepdims=True) / whole
            tile = mixed.astype(ct.bfloat16).reshape((1, 1, 128))
            ct.store(out, index=(slot, head, 0), tile=tile, allow_tma=False, check_bounds=False)


def split_tile(array, slot, head, SPLITS, WIDTH):
    """All splits of a head: [SPLITS, WIDTH]."""
    tile = ct.load(
        array, index=(slot, head, 0, 0), shape=(1, 1, SPLITS, WIDTH), allow_tma=False, check_bounds=False
    )
    return tile.reshape((SPLITS, WIDTH))


def half_tiles(keys, slot, head, tile, KEYS):
    """The two halves of KEYS keys, bf16 [KEYS, D/2] each."""
    low = ct.load(
        keys, index=(slot, head, tile, 0), shape=(1, 1, KEYS, 64), allow_tma=False, check_bounds=False
    )
    high = ct.load(
        keys, index=(slot, head, tile, 1), shape=(1, 1, KEYS, 64), allow_tma=False, check_bounds=False
    )
    return low.reshape((KEYS, 64)), high.reshape((KEYS, 64))


def fold(low, high, held, query, new, tile, place, top, total, part, KEYS):
    """Take one tile of keys and values into a query's running maximum, sum and output (online softmax)."""
    rows = (tile * KEYS + ct.arange(KEYS, dtype=ct.int32)).reshape((KEYS, 1))
    lows = ct.where(rows == place, new[0], low).astype(ct.float32)
    highs = ct.where(rows == place, new[1], high).astype(ct.float32)
    mixed = ct.where(rows == place, new[2], held).astype(ct.float32)
    scores = ct.sum(lows * query[0] + highs * query[1], axis=1, keepdims=True)  # [KEYS, 1]
    scores = ct.where(rows <= place, scores, LOWEST)
    above = ct.maximum(top, ct.max(scores, axis=0, keepdims=True))
    weights = ct.exp2(scores - above)
    shrink = ct.exp2(top - above)
    mixed = ct.where(rows <= place, mixed, 0.0) * weights
    total = total * shrink + ct.sum(weights, axis=0, keepdims=True)
    return above, total, part * shrink + ct.sum(mixed, axis=0, keepdims=True)


@ct.kernel
def attend(
    qkv,
    query_norm,
    key_norm,
    rotary,
    positions,
    keys,
    values,
    parts,
    tops,
    sums,
    arrived,
    out,
    EPS: Float,
    SCALE: Float,
    HQ: Int,
    HKV: Int,
    LENGTH: Int,
    KEYS: Int,
    SPLITS: Int,
):
    """One row, one query head and split a block, on the ordinary units. Grid (Hq, SPLITS, 1)."""
    head, split, slot = ct.bid(0), ct.bid(1), ct.bid(2)
    ct.grid_dependency_control_launch_dependents()
    group = head // (HQ // HKV)
    place = place_of(positions, slot, LENGTH)
    angle = ct.maximum(place, 0)
    cos = ct.load(rotary, index=(angle, 0), shape=(1, 64), allow_tma=False, check_bounds=False)
    sin = ct.load(rotary, index=(angle, 1), shape=(1, 64), allow_tma=False, check_bounds=False)
    first = ct.minimum(
        split, angle // KEYS
    )  # a split with nothing to do asks for what another one reads anyway
    low, high = half_tiles(keys, slot, group, first, KEYS)
    held = cache_tile(values, slot, group, first, KEYS)
    ct.grid_dependency_control_wait()
    if split * KEYS <= place:
        new_low, new_high = norm_turn(
            half_heads(qkv, slot, HQ + group, 0, 1),
            half_heads(qkv, slot, HQ + group, 1, 1),
            key_norm,
            cos,
            sin,
            EPS,
        )
        new_low = new_low.astype(ct.bfloat16)
        new_high = new_high.astype(ct.bfloat16)
        new_value = ct.load(
            qkv, index=(slot, HQ + HKV + group, 0), shape=(1, 1, 128), allow_tma=False, check_bounds=False
        )
        new_value = new_value.reshape((1, 128)).astype(ct.bfloat16)
        if (split == 0) & (head % (HQ // HKV) == 0):
            append(values, slot, group, place, new_value)
            append_half(keys, slot, group, place, 0, new_low)
            append_half(keys, slot, group, place, 1, new_high)
        query_low, query_high = norm_turn(
            half_heads(qkv, slot, head, 0, 1), half_heads(qkv, slot, head, 1, 1), query_norm, cos, sin, EPS
        )
        top = ct.full((1, 1), LOWEST, dtype=ct.float32)
        total = ct.zeros((1, 1), dtype=ct.float32)
        part = ct.zeros((1, 128), dtype=ct.float32)
        query = (query_low * SCALE, query_high * SCALE)
        new = (new_low, new_high, new_value)
        top, total, part = fold(low, high, held, query, new, split, place, top, total, part, KEYS)
        for tile in range(split + SPLITS, place // KEYS + 1, SPLITS):
            low, high = half_tiles(keys, slot, group, tile, KEYS)
            held = cache_tile(values, slot, group, tile, KEYS)
            top, total, part = fold(low, high, held, query, new, tile, place, top, total, part, KEYS)
        leave_part(parts, tops, sums, slot, head, split, part, top, total, 1)
    join_last(parts, tops, sums, arrived, out, slot, head, place, 1, KEYS, SPLITS)


def first_heads(columns, HEADS, WIDTH):
    """[WIDTH, 8], whose columns repeat HEADS heads, as [HEADS, WIDTH]; equal columns have equal maxima."""
    return ct.max(ct.transpose(columns).reshape((8 // HEADS, HEADS, WIDTH)), axis=0)


def fold_rows(key_tile, value_tile, query, new, tile, place, top, total, part, KEYS):
    """`fold` for the 8 columns of `query` [D, 8], keys first: part [D, 8], top and total [1, 8]."""
    rows = (tile * KEYS + ct.arange(KEYS, dtype=ct.int32)).reshape((KEYS, 1))
    held = ct.where(rows == place, new[0], key_tile)
    scores = ct.mma(held, query, ct.zeros((KEYS, 8), dtype=ct.float32))  # [KEYS, 8]
    scores = ct.where(rows <= place, scores, LOWEST)
    above = ct.maximum(top, ct.max(scores, axis=0, keepdims=True))
    weights = ct.exp2(scores - above)
    shrink = ct.exp2(top - above)
    mixed = ct.where(rows == place, new[1], value_tile)
    mixed = ct.where(rows <= place, mixed, ct.zeros((KEYS, 128), dtype=ct.bfloat16))
    total = total * shrink + ct.sum(weights, axis=0, keepdims=True)
    return above, total, ct.mma(ct.transpose(mixed), weights.astype(ct.bfloat16), part * shrink)


@ct.kernel
def attend_rows(
    qkv,
    query_norm,
    key_norm,
    rotary,
    positions,
    keys,
    values,
    parts,
    tops,
    sums,
    arrived,
    out,
    EPS: Float,
    SCALE: Float,
    HQ: Int,
    HKV: Int,
    HEADS: Int,
    LENGTH: Int,
    KEYS: Int,
    SPLITS: Int,
):
    """Several rows, one key head and split a block, on the tensor cores, keys first.

    Grid (Hkv, SPLITS, rows).
    HEADS = G query heads are repeated to fill the 8 columns that the unit needs.
    """
    group, split, slot = ct.bid(0), ct.bid(1), ct.bid(2)
    ct.grid_dependency_control_launch_dependents()
    place = place_of(positions, slot, LENGTH)
    angle = ct.maximum(place, 0)
    cos = ct.load(rotary, index=(angle, 0), shape=(1, 64), allow_tma=False, check_bounds=False)
    sin = ct.load(rotary, index=(angle, 1), shape=(1, 64), allow_tma=False, check_bounds=False)
    first = ct.minimum(split, angle // KEYS)
    key_tile = cache_tile(keys, slot, group, first, KEYS)
    value_tile = cache_tile(values, slot, group, first, KEYS)
    ct.grid_dependency_control_wait()
    if split * KEYS <= place:
        low, high = norm_turn(
            half_heads(qkv, slot, HQ + group, 0, 1),
            half_heads(qkv, slot, HQ + group, 1, 1),
            key_norm,
            cos,
            sin,
            EPS,
        )
        new_key = ct.cat((low, high), axis=1).astype(ct.bfloat16)
        new_value = ct.load(
            qkv, index=(slot, HQ + HKV + group, 0), shape=(1, 1, 128), allow_tma=False, check_bounds=False
        )
        new_value = new_value.reshape((1, 128)).astype(ct.bfloat16)
        if split == 0:
            append(keys, slot, group, place, new_key)
            append(values, slot, group, place, new_value)
        low, high = norm_turn(
            half_heads(qkv, slot, group, 0, HEADS),
            half_heads(qkv, slot, group, 1, HEADS),
            query_norm,
            cos,
            sin,
            EPS,
        )
        query = (ct.cat((low, high), axis=1) * SCALE).astype(ct.bfloat16)  # [G, D]
        query = ct.broadcast_to(query.reshape((1, HEADS, 128)), (8 // HEADS, HEADS, 128)).reshape((8, 128))
        query = ct.transpose(query)  # [D, 8]
        top = ct.full((1, 8), LOWEST, dtype=ct.float32)
        total = ct.zeros((1, 8), dtype=ct.float32)
        part = ct.zeros((128, 8), dtype=ct.float32)
        new = (new_key, new_value)
        top, total, part = fold_rows(key_tile, value_tile, query, new, split, place, top, total, part, KEYS)
        for tile in range(split + SPLITS, place // KEYS + 1, SPLITS):
            key_tile = cache_tile(keys, slot, group, tile, KEYS)
            value_tile = cache_tile(values, slot, group, tile, KEYS)
            top, total, part = fold_rows(
                key_tile, value_tile, query, new, tile, place, top, total, part, KEYS
            )
        leave_part(
            parts,
            tops,
            sums,
            slot,
            group,
            split,
            first_heads(part, HEADS, 128),
            first_heads(top, HEADS, 1),
            first_heads(total, HEADS, 1),
            HEADS,
        )
    join_last(parts, tops, sums, arrived, out, slot, group, place, HEADS, KEYS, SPLITS)


@ct.kernel
def append_prompt(
    qkv,
    query_norm,
    key_norm,
    rotary,
    span,
    keys,
    values,
    query,
    EPS: Float,
    SCALE: Float,
    HQ: Int,
    HKV: Int,
    HEADS: Int,
    T: Int,
):
    """Norm and turn a prompt chunk's heads; append its keys and values. Grid (Hkv, rows / T).

    span i32 [4]: slot, first position, rows that count, the last of them. query bf16 [rows, Hq, D] is scaled.
    """
    group, block = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    slot = ct.load(span, index=(0,), shape=(1,), allow_tma=False).item()
    first = ct.load(span, index=(1,), shape=(1,), allow_tma=False).item()
    count = ct.load(span, index=(2,), shape=(1,), allow_tma=False).item()
    for i in range(T):
        row = block * T + i
        place = first + row
        if row < count:
            cos = ct.load(rotary, index=(place, 0), shape=(1, 64), allow_tma=False, check_bounds=False)
            sin = ct.load(rotary, index=(place, 1), shape=(1, 64), allow_tma=False, check_bounds=False)
            low, high = norm_turn(
                half_heads(qkv, row, group, 0, HEADS),
                half_heads(qkv, row, group, 1, HEADS),
                query_norm,
                cos,
                sin,
                EPS,
            )
            turned = (ct.cat((low, high), axis=1) * SCALE).astype(ct.bfloat16).reshape((1, HEADS, 128))
            ct.store(query, index=(row, group, 0), tile=turned, allow_tma=False, check_bounds=False)
            low, high = norm_turn(
                half_heads(qkv, row, HQ + group, 0, 1),
                half_heads(qkv, row, HQ + group, 1, 1),
                key_norm,
                cos,
                sin,
                EPS,
            )
            append(keys, slot, group, place, ct.cat((low, high), axis=1))
            value = ct.load(
                qkv, index=(row, HQ + HKV + group, 0), shape=(1, 1, 128), allow_tma=False, check_bounds=False
            )
            append(values, slot, group, place, value)


@ct.kernel
def attend_prompt(query, span, keys, values, out, HQ: Int, HKV: Int, T: Int, KEYS: Int):
    """Causal attention of a prompt chunk over its slot, T rows of one head a block. Grid (rows / T, Hq)."""
    block, head = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    slot = ct.load(span, index=(0,), shape=(1,), allow_tma=False).item()
    first = ct.load(span, index=(1,), shape=(1,), allow_tma=False).item()
    count = ct.load(span, index=(2,), shape=(1,), allow_tma=False).item()
    rows = ct.load(query, index=(block, head, 0), shape=(T, 1, 128), allow_tma=False, check_bounds=False)
    rows = rows.reshape((T, 128))
    places = (first + block * T + ct.arange(T, dtype=ct.int32)).reshape((T, 1))
    end = first + ct.minimum(count, (block + 1) * T)  # keys behind it were never written
    group = head // (HQ // HKV)
    top = ct.full((T, 1), LOWEST, dtype=ct.float32)
    total = ct.zeros((T, 1), dtype=ct.float32)
    mixed = ct.zeros((T, 128), dtype=ct.float32)
    for tile in range(ct.cdiv(end, KEYS)):
        key_tile = ct.load(
            keys, index=(slot, group, tile, 0), shape=(1, 1, KEYS, 128), latency=4, check_bounds=False
        )
        value_tile = ct.load(
            values, index=(slot, group, tile, 0), shape=(1, 1, KEYS, 128), latency=4, check_bounds=False
        )
        here = tile * KEYS + ct.arange(KEYS, dtype=ct.int32)
        scores = ct.mma(
            rows, ct.transpose(key_tile.reshape((KEYS, 128))), ct.zeros((T, KEYS), dtype=ct.float32)
        )
        scores = ct.where(here.reshape((1, KEYS)) <= places, scores, LOWEST)
        above = ct.maximum(top, ct.max(scores, axis=1, keepdims=True))
        weights = ct.exp2(scores - above)
        shrink = ct.exp2(top - above)
        known = ct.where(
            (here < end).reshape((KEYS, 1)),
            value_tile.reshape((KEYS, 128)),
            ct.zeros((KEYS, 128), dtype=ct.bfloat16),
        )
        mixed = ct.mma(weights.astype(ct.bfloat16), known, mixed * shrink)
        total = total * shrink + ct.sum(weights, axis=1, keepdims=True)
        top = above
    tile = (mixed / total).astype(ct.bfloat16).reshape((T, 1, 128))
    ct.store(out, index=(block, head, 0), tile=tile, allow_tma=False, check_bounds=False)
