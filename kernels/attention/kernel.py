"""Attention over a slot's static cache: per-head norm and rotary embedding, append, grouped-query softmax.

Decode splits a slot's keys over SPLITS blocks (flash-decoding; Dao et al., 2023): split s takes key tiles
s, s + SPLITS and so on, and the last block of a head to finish joins the parts in their order, so the sum
never depends on which one that was. The new position's key and value come from registers: nobody waits for
the cache. Everything that does not depend on the projection just before (the position, the older keys and
values) is loaded before the wait; `embedding` says why that is safe. Scores are in base 2: the query
carries log2(e) / sqrt(D).

Online softmax (Milakov and Gimelshein, 2018) has its usual names: m_i is the running maximum, l_i the
running sum of the weights 2^(score - m_i), acc the sum of the values by those weights, not yet over l_i.

A prompt's program holds pieces of several slots. Each starts at a multiple of GROUP rows, and no two share
a group: `groups` i32 [rows / GROUP, 3] says of each one its slot, the position of its first row, and how
many of its rows count, which may be none. The others leave nothing in the cache, and no row that counts
depends on them.

Shapes: qkv [T, Hq + 2 Hkv, D], keys and values [slots, Hkv, N, D], rotary [N, D] as cosines, sines; D =
128. Rows of the cache beyond a slot's position are never used, whatever they hold. G = Hq / Hkv query
heads share a key head.
"""

from __future__ import annotations

import cuda.tile as ct

from kernels.products import Float, Int, gain_tile

LOWEST = -1.0e30  # a score no real one comes near; minus infinity would make NaN of 0 · inf


def load_tile(array, index, shape):
    """A tile that lies inside the array, by plain loads."""
    return ct.load(array, index=index, shape=shape, allow_tma=False, check_bounds=False)


def store_tile(array, index, tile):
    """Write a tile that lies inside the array, by plain stores."""
    ct.store(array, index=index, tile=tile, allow_tma=False, check_bounds=False)


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


def store_cache(cache, slot, head, position, part, row, WIDTH):
    """Write part `part`, [1, WIDTH], of one row of the cache."""
    store_tile(cache, (slot, head, position, part), row.astype(ct.bfloat16).reshape((1, 1, 1, WIDTH)))


def angles(rotary, position):
    """Cosines and sines [1, D/2] of a position."""
    return load_tile(rotary, (position, 0), (1, 64)), load_tile(rotary, (position, 1), (1, 64))


def half_heads(qkv, row, head, part, HEADS):
    """Half `part` of the vectors of HEADS heads, f32 [HEADS, D/2]; `head` counts groups of HEADS."""
    return load_tile(qkv, (row, head, part), (1, HEADS, 64)).reshape((HEADS, 64)).astype(ct.float32)


def turned_heads(qkv, row, head, norm, turn, EPS, HEADS):
    """Both halves, f32 [HEADS, D/2], of HEADS heads, normed by `norm` [D] and turned by the angles `turn`."""
    low, high = half_heads(qkv, row, head, 0, HEADS), half_heads(qkv, row, head, 1, HEADS)
    cos, sin = turn
    scale = ct.rsqrt(ct.sum(low * low + high * high, axis=1, keepdims=True) * (1.0 / 128) + EPS)
    low = low * scale * gain_tile(norm, 0, 64)
    high = high * scale * gain_tile(norm, 1, 64)
    return low * cos - high * sin, high * cos + low * sin


def value_row(qkv, row, head):
    """A value vector bf16 [1, D]."""
    return load_tile(qkv, (row, head, 0), (1, 1, 128)).reshape((1, 128)).astype(ct.bfloat16)


def rescale(m_i, scores, AXIS):
    """What more scores make of m_i, their weights under the new one, and the factor for what went before."""
    above = ct.maximum(m_i, ct.max(scores, axis=AXIS, keepdims=True))
    return above, ct.exp2(scores - above), ct.exp2(m_i - above)


# Decode.


def position_of(positions, rotary, slot, LENGTH):
    """The slot's position if it is live, else -1, and its angles, or those of position 0."""
    position = ct.load(positions, index=(slot,), shape=(1,), allow_tma=False).item()
    position = ct.where((position >= 0) & (position < LENGTH), position, -1)
    return position, angles(rotary, ct.maximum(position, 0))


def first_tile(split, position, KEYS):
    """The split's first tile of keys; one with nothing to do asks for what another one reads anyway."""
    return ct.minimum(split, ct.maximum(position, 0) // KEYS)


def new_row(qkv, key_norm, slot, kv_head, turn, EPS, HQ, HKV):
    """The new position's key, f32 in halves [1, D/2], and value bf16 [1, D]."""
    low, high = turned_heads(qkv, slot, HQ + kv_head, key_norm, turn, EPS, 1)
    return low, high, value_row(qkv, slot, HQ + HKV + kv_head)


def leave_part(split_acc, split_m, split_l, slot, block, split, acc, m_i, l_i, HEADS):
    """Write one split's acc [HEADS, D], m_i and l_i [HEADS, 1]."""
    leave_tile(split_acc, slot, block, split, acc, HEADS, 128)
    leave_tile(split_m, slot, block, split, m_i, HEADS, 1)
    leave_tile(split_l, slot, block, split, l_i, HEADS, 1)


def leave_tile(array, slot, block, split, tile, HEADS, WIDTH):
    """Write one split's [HEADS, WIDTH]."""
    store_tile(array, (slot, block, split, 0), tile.reshape((1, HEADS, 1, WIDTH)))


def split_tile(array, slot, head, SPLITS, WIDTH):
    """All splits of a head: [SPLITS, WIDTH]."""
    return load_tile(array, (slot, head, 0, 0), (1, 1, SPLITS, WIDTH)).reshape((SPLITS, WIDTH))


def join_last(split_acc, split_m, split_l, arrived, out, slot, block, position, HEADS, KEYS, SPLITS):
    """Count this block in; the last one of these HEADS heads writes their output from all splits."""
    before = ct.atomic_add(arrived, (slot, block), 1, check_bounds=False)
    if before.item() == SPLITS - 1:
        ct.scatter(arrived, (slot, block), 0)
        used = (ct.arange(SPLITS, dtype=ct.int32) * KEYS).reshape((SPLITS, 1)) <= position
        # Head by head: tileiras 13.4 makes a misaligned access of a [2, SPLITS, 1] tile.
        for i in ct.static_iter(range(HEADS)):
            head = block * HEADS + i
            acc = split_tile(split_acc, slot, head, SPLITS, 128)
            m_i = ct.where(used, split_tile(split_m, slot, head, SPLITS, 1), LOWEST)
            l_i = ct.where(used, split_tile(split_l, slot, head, SPLITS, 1), 0.0)
            share = ct.where(used, ct.exp2(m_i - ct.max(m_i, axis=0, keepdims=True)), 0.0)
            whole = ct.maximum(ct.sum(l_i * share, axis=0, keepdims=True), 1.0e-30)
            mixed = ct.sum(ct.where(used, acc, 0.0) * share, axis=0, keepdims=True) / whole
            store_tile(out, (slot, head, 0), mixed.astype(ct.bfloat16).reshape((1, 1, 128)))


def half_tiles(keys, slot, head, tile, KEYS):
    """The two halves of KEYS keys, bf16 [KEYS, D/2] each."""
    low = load_tile(keys, (slot, head, tile, 0), (1, 1, KEYS, 64))
    high = load_tile(keys, (slot, head, tile, 1), (1, 1, KEYS, 64))
    return low.reshape((KEYS, 64)), high.reshape((KEYS, 64))


def fold(low, high, held, query, new, tile, position, m_i, l_i, acc, KEYS):
    """Take one tile of keys and values into a query's m_i and l_i [1, 1] and acc [1, D]."""
    rows = (tile * KEYS + ct.arange(KEYS, dtype=ct.int32)).reshape((KEYS, 1))
    lows = ct.where(rows == position, new[0], low).astype(ct.float32)
    highs = ct.where(rows == position, new[1], high).astype(ct.float32)
    mixed = ct.where(rows == position, new[2], held).astype(ct.float32)
    scores = ct.sum(lows * query[0] + highs * query[1], axis=1, keepdims=True)  # [KEYS, 1]
    scores = ct.where(rows <= position, scores, LOWEST)
    m_i, weights, shrink = rescale(m_i, scores, 0)
    mixed = ct.where(rows <= position, mixed, 0.0) * weights
    l_i = l_i * shrink + ct.sum(weights, axis=0, keepdims=True)
    return m_i, l_i, acc * shrink + ct.sum(mixed, axis=0, keepdims=True)


@ct.kernel
def attend(
    qkv,
    query_norm,
    key_norm,
    rotary,
    positions,
    keys,
    values,
    split_acc,
    split_m,
    split_l,
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
    kv_head = head // (HQ // HKV)
    position, turn = position_of(positions, rotary, slot, LENGTH)
    first = first_tile(split, position, KEYS)
    low, high = half_tiles(keys, slot, kv_head, first, KEYS)
    held = cache_tile(values, slot, kv_head, first, KEYS)
    ct.grid_dependency_control_wait()
    if split * KEYS <= position:
        new_low, new_high, new_value = new_row(qkv, key_norm, slot, kv_head, turn, EPS, HQ, HKV)
        new = (new_low.astype(ct.bfloat16), new_high.astype(ct.bfloat16), new_value)
        if (split == 0) & (head % (HQ // HKV) == 0):
            store_cache(values, slot, kv_head, position, 0, new[2], 128)
            store_cache(keys, slot, kv_head, position, 0, new[0], 64)
            store_cache(keys, slot, kv_head, position, 1, new[1], 64)
        query_low, query_high = turned_heads(qkv, slot, head, query_norm, turn, EPS, 1)
        query = (query_low * SCALE, query_high * SCALE)
        m_i = ct.full((1, 1), LOWEST, dtype=ct.float32)
        l_i = ct.zeros((1, 1), dtype=ct.float32)
        acc = ct.zeros((1, 128), dtype=ct.float32)
        m_i, l_i, acc = fold(low, high, held, query, new, split, position, m_i, l_i, acc, KEYS)
        for tile in range(split + SPLITS, position // KEYS + 1, SPLITS):
            low, high = half_tiles(keys, slot, kv_head, tile, KEYS)
            held = cache_tile(values, slot, kv_head, tile, KEYS)
            m_i, l_i, acc = fold(low, high, held, query, new, tile, position, m_i, l_i, acc, KEYS)
        leave_part(split_acc, split_m, split_l, slot, head, split, acc, m_i, l_i, 1)
    join_last(split_acc, split_m, split_l, arrived, out, slot, head, position, 1, KEYS, SPLITS)


def first_heads(columns, HEADS, WIDTH):
    """[WIDTH, 8], whose columns repeat HEADS heads, as [HEADS, WIDTH]; equal columns have equal maxima."""
    return ct.max(ct.transpose(columns).reshape((8 // HEADS, HEADS, WIDTH)), axis=0)


def fold_rows(key_tile, value_tile, query, new, tile, position, m_i, l_i, acc, KEYS):
    """`fold` for the 8 columns of `query` [D, 8], keys first: m_i and l_i [1, 8], acc [D, 8]."""
    rows = (tile * KEYS + ct.arange(KEYS, dtype=ct.int32)).reshape((KEYS, 1))
    held = ct.where(rows == position, new[0], key_tile)
    scores = ct.mma(held, query, ct.zeros((KEYS, 8), dtype=ct.float32))  # [KEYS, 8]
    scores = ct.where(rows <= position, scores, LOWEST)
    m_i, weights, shrink = rescale(m_i, scores, 0)
    mixed = ct.where(rows == position, new[1], value_tile)
    mixed = ct.where(rows <= position, mixed, ct.zeros((KEYS, 128), dtype=ct.bfloat16))
    l_i = l_i * shrink + ct.sum(weights, axis=0, keepdims=True)
    return m_i, l_i, ct.mma(ct.transpose(mixed), weights.astype(ct.bfloat16), acc * shrink)


@ct.kernel
def attend_rows(
    qkv,
    query_norm,
    key_norm,
    rotary,
    positions,
    keys,
    values,
    split_acc,
    split_m,
    split_l,
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
    kv_head, split, slot = ct.bid(0), ct.bid(1), ct.bid(2)
    ct.grid_dependency_control_launch_dependents()
    position, turn = position_of(positions, rotary, slot, LENGTH)
    first = first_tile(split, position, KEYS)
    key_tile = cache_tile(keys, slot, kv_head, first, KEYS)
    value_tile = cache_tile(values, slot, kv_head, first, KEYS)
    ct.grid_dependency_control_wait()
    if split * KEYS <= position:
        low, high, new_value = new_row(qkv, key_norm, slot, kv_head, turn, EPS, HQ, HKV)
        new = (ct.cat((low, high), axis=1).astype(ct.bfloat16), new_value)
        if split == 0:
            store_cache(keys, slot, kv_head, position, 0, new[0], 128)
            store_cache(values, slot, kv_head, position, 0, new[1], 128)
        low, high = turned_heads(qkv, slot, kv_head, query_norm, turn, EPS, HEADS)
        query = (ct.cat((low, high), axis=1) * SCALE).astype(ct.bfloat16)  # [G, D]
        query = ct.broadcast_to(query.reshape((1, HEADS, 128)), (8 // HEADS, HEADS, 128)).reshape((8, 128))
        query = ct.transpose(query)  # [D, 8]
        m_i = ct.full((1, 8), LOWEST, dtype=ct.float32)
        l_i = ct.zeros((1, 8), dtype=ct.float32)
        acc = ct.zeros((128, 8), dtype=ct.float32)
        m_i, l_i, acc = fold_rows(key_tile, value_tile, query, new, split, position, m_i, l_i, acc, KEYS)
        for tile in range(split + SPLITS, position // KEYS + 1, SPLITS):
            key_tile = cache_tile(keys, slot, kv_head, tile, KEYS)
            value_tile = cache_tile(values, slot, kv_head, tile, KEYS)
            m_i, l_i, acc = fold_rows(key_tile, value_tile, query, new, tile, position, m_i, l_i, acc, KEYS)
        acc, m_i, l_i = first_heads(acc, HEADS, 128), first_heads(m_i, HEADS, 1), first_heads(l_i, HEADS, 1)
        leave_part(split_acc, split_m, split_l, slot, kv_head, split, acc, m_i, l_i, HEADS)
    join_last(split_acc, split_m, split_l, arrived, out, slot, kv_head, position, HEADS, KEYS, SPLITS)


# Prompts.


def piece_at(groups, row, GROUP):
    """A prompt row's slot, its position there, and how many rows from it on its group has that count."""
    group, inside = row // GROUP, row % GROUP
    slot, first, count = tuple(load_tile(groups, (group, i), (1, 1)).item() for i in ct.static_iter(range(3)))
    return slot, first + inside, count - inside


def bulk_tile(cache, slot, head, tile, KEYS):
    """KEYS rows of the cache, bf16 [KEYS, D], by the tensor memory accelerator."""
    rows = ct.load(cache, index=(slot, head, tile, 0), shape=(1, 1, KEYS, 128), latency=4, check_bounds=False)
    return rows.reshape((KEYS, 128))


@ct.kernel
def append_prompt(
    qkv,
    query_norm,
    key_norm,
    rotary,
    groups,
    keys,
    values,
    query,
    EPS: Float,
    SCALE: Float,
    HQ: Int,
    HKV: Int,
    HEADS: Int,
    T: Int,
    GROUP: Int,
):
    """Norm and turn the heads of a prompt's rows; append their keys and values. Grid (Hkv, rows / T).

    query bf16 [rows, Hq, D] is scaled; rows that do not count are left as they are.
    """
    head, block = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    slot, first, count = piece_at(groups, block * T, GROUP)
    for i in range(T):
        row = block * T + i
        position = first + i
        if i < count:
            turn = angles(rotary, position)
            low, high = turned_heads(qkv, row, head, query_norm, turn, EPS, HEADS)
            turned = (ct.cat((low, high), axis=1) * SCALE).astype(ct.bfloat16)
            store_tile(query, (row, head, 0), turned.reshape((1, HEADS, 128)))
            low, high, value = new_row(qkv, key_norm, row, head, turn, EPS, HQ, HKV)
            store_cache(keys, slot, head, position, 0, ct.cat((low, high), axis=1), 128)
            store_cache(values, slot, head, position, 0, value, 128)


@ct.kernel
def attend_prompt(query, groups, keys, values, out, HQ: Int, HKV: Int, T: Int, KEYS: Int, GROUP: Int):
    """Causal attention of a prompt's rows over their slots, T rows of one head a block. Grid (rows / T, Hq).

    T divides GROUP. A block none of whose rows count writes nothing; what stands in the others' place of one
    that has some is anything.
    """
    block, head = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    slot, first, count = piece_at(groups, block * T, GROUP)
    if count > 0:
        rows = load_tile(query, (block, head, 0), (T, 1, 128)).reshape((T, 128))
        places = (first + ct.arange(T, dtype=ct.int32)).reshape((T, 1))
        end = first + ct.minimum(count, T)  # keys behind it were never written
        kv_head = head // (HQ // HKV)
        m_i = ct.full((T, 1), LOWEST, dtype=ct.float32)
        l_i = ct.zeros((T, 1), dtype=ct.float32)
        acc = ct.zeros((T, 128), dtype=ct.float32)
        for tile in range(ct.cdiv(end, KEYS)):
            key_tile = bulk_tile(keys, slot, kv_head, tile, KEYS)
            value_tile = bulk_tile(values, slot, kv_head, tile, KEYS)
            here = tile * KEYS + ct.arange(KEYS, dtype=ct.int32)
            scores = ct.mma(rows, ct.transpose(key_tile), ct.zeros((T, KEYS), dtype=ct.float32))
            scores = ct.where(here.reshape((1, KEYS)) <= places, scores, LOWEST)
            m_i, weights, shrink = rescale(m_i, scores, 1)
            nothing = ct.zeros((KEYS, 128), dtype=ct.bfloat16)
            known = ct.where((here < end).reshape((KEYS, 1)), value_tile, nothing)
            acc = ct.mma(weights.astype(ct.bfloat16), known, acc * shrink)
            l_i = l_i * shrink + ct.sum(weights, axis=1, keepdims=True)
        store_tile(out, (block, head, 0), (acc / l_i).astype(ct.bfloat16).reshape((T, 1, 128)))
