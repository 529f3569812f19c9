"""Reading as fast as memory allows: every block adds up a row of words and writes one.

Nothing read depends on the launch before, so launches of a graph run into one another without a gap: what
is measured is the memory, and not how often it is asked.
"""

from __future__ import annotations

import cuda.tile as ct

from kernels.products import Int, plain_tile


@ct.kernel
def row_sums(words, sums, WIDTH: Int, TILES: Int):
    """sums[n] = the sum of words[n], modulo 2^32; words i32 [N, WIDTH · TILES], sums i32 [N, 1]."""
    block = ct.bid(0)
    ct.grid_dependency_control_launch_dependents()
    tiles = tuple(plain_tile(words, block, k, 1, WIDTH) for k in ct.static_iter(range(TILES)))
    total = ct.zeros((1, WIDTH), dtype=ct.int32)
    for k in ct.static_iter(range(TILES)):
        total = total + tiles[k]
    found = ct.sum(total, axis=1, keepdims=True)  # [1, 1]
    ct.grid_dependency_control_wait()  # the launch before may still write the same sums
    ct.store(sums, index=(block, 0), tile=found, allow_tma=False, check_bounds=False)
