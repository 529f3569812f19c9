"""The attention output projection with its reduction split: parts in any order, their sum in one.

Each head's width is cut into SPLITS equal slices; slot = head · SPLITS + split is one slice. A block computes
the slots of one split for ROWS outputs, and a second kernel adds all slots from left to right. Within a slot,
neighbours are added pair by pair, then pairs of pairs. A product of two bf16 is exact in f32, fused or not,
so every bit follows from the order of the additions, and `reference` adds in the same one.
"""

from __future__ import annotations

import cuda.tile as ct

from kernels.output_residual.kernel import leave_behind
from kernels.products import Int, gain_tile, plain_tile


def slices(array, row, group, split, ROWS, HEADS, SLICE):
    """A split's slices of HEADS heads, [ROWS, HEADS, SLICE], from [N, heads, SPLITS, SLICE]."""
    tile = ct.load(
        array,
        index=(row, group, split, 0),
        shape=(ROWS, HEADS, 1, SLICE),
        latency=8,
        allow_tma=False,
        check_bounds=False,
    )
    return tile.reshape((ROWS, HEADS, SLICE))


def in_pairs(products, ROWS, HEADS, LEVELS):
    """[ROWS, HEADS, 2^LEVELS] -> [ROWS, HEADS], neighbours first: a sum of two has one order only."""
    for level in ct.static_iter(range(LEVELS)):
        products = ct.sum(products.reshape((ROWS, HEADS, 1 << (LEVELS - 1 - level), 2)), axis=3)
    return products.reshape((ROWS, HEADS))


@ct.kernel
def split_products(x, weight, partials, T: Int, ROWS: Int, HEADS: Int, GROUPS: Int, SLICE: Int, LEVELS: Int):
    """partials[head, split, t, n] = x[t] · weight[n] over one slot, f32.

    x bf16 [T, heads, SPLITS, SLICE], weight bf16 [N, heads, SPLITS, SLICE]; HEADS · GROUPS are the heads.
    """
    block, split = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_launch_dependents()
    first = slices(weight, block, 0, split, ROWS, HEADS, SLICE)
    ct.grid_dependency_control_wait()
    for group in ct.static_iter(range(GROUPS)):
        tile = first if group == 0 else slices(weight, block, group, split, ROWS, HEADS, SLICE)
        tile = tile.astype(ct.float32)
        for t in range(T):
            row = slices(x, t, group, split, 1, HEADS, SLICE).astype(ct.float32)
            sums = ct.transpose(in_pairs(tile * row, ROWS, HEADS, LEVELS))  # [HEADS, ROWS]
            ct.store(
                partials,
                index=(group, split, t, block),
                tile=sums.reshape((HEADS, 1, 1, ROWS)),
                allow_tma=False,
                check_bounds=False,
            )


def left_to_right(partials, block, T, COLUMNS, SLOTS, AT_ONCE):
    """The sum over the slots [T, COLUMNS], from the first to the last; AT_ONCE of them are on their way."""
    total = ct.zeros((T, COLUMNS), dtype=ct.float32)
    for chunk in range(SLOTS // AT_ONCE):
        parts = tuple(
            ct.load(
                partials,
                index=(chunk * AT_ONCE + part, 0, block),
                shape=(1, T, COLUMNS),
                allow_tma=False,
                check_bounds=False,
            ).reshape((T, COLUMNS))
            for part in ct.static_iter(range(AT_ONCE))
        )
        for part in ct.static_iter(range(AT_ONCE)):
            total = total + parts[part]
    return total


@ct.kernel
def add_partials(partials, residual, hidden, COLUMNS: Int, SLOTS: Int, AT_ONCE: Int):
    """residual[n] += the sum of the slots; hidden = bf16(residual). partials f32 [SLOTS, 1, N]."""
    block = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    stream = plain_tile(residual, 0, block, 1, COLUMNS) + left_to_right(
        partials, block, 1, COLUMNS, SLOTS, AT_ONCE
    )
    ct.store(residual, index=(0, block), tile=stream, allow_tma=False, check_bounds=False)
    ct.store(hidden, index=(0, block), tile=stream.astype(ct.bfloat16), allow_tma=False, check_bounds=False)


@ct.kernel
def add_partials_rows(partials, residual, norm, z, squares, T: Int, COLUMNS: Int, SLOTS: Int, AT_ONCE: Int):
    """residual[t, n] += the sum of the slots for T = 8 rows; then `leave_behind`. partials [SLOTS, T, N]."""
    block = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    ct.grid_dependency_control_wait()
    stream = plain_tile(residual, 0, block, T, COLUMNS) + left_to_right(
        partials, block, T, COLUMNS, SLOTS, AT_ONCE
    )
    leave_behind(stream, gain_tile(norm, block, COLUMNS), residual, z, squares, 0, block)
