"""Embedding look-up: the rows of `tokens` enter the residual stream, with what the first projection reads.

These are the only kernels that let their successors start after they waited, not before: so everything
behind them in a step runs when all earlier steps are over, and may read tokens, positions and older cache
rows before its own wait.
"""

from __future__ import annotations

import cuda.tile as ct

from kernels.output_residual.kernel import leave_behind
from kernels.products import Int, gain_tile


@ct.kernel
def embedding(tokens, table, residual, hidden, WIDTH: Int):
    """One row: residual f32 [1, H] and hidden bf16 [1, H] become table[tokens[0]]; table bf16 [V, H]."""
    column = ct.bid(0)
    ct.grid_dependency_control_wait()
    ct.grid_dependency_control_launch_dependents()
    token = ct.load(tokens, index=(0,), shape=(1,), allow_tma=False).item()
    row = ct.load(table, index=(token, column), shape=(1, WIDTH), allow_tma=False, check_bounds=False)
    ct.store(residual, index=(0, column), tile=row.astype(ct.float32), allow_tma=False, check_bounds=False)
    ct.store(hidden, index=(0, column), tile=row.astype(ct.bfloat16), allow_tma=False, check_bounds=False)


@ct.kernel
def embedding_rows(tokens, table, residual, norm, z, squares, T: Int, WIDTH: Int):
    """T rows and WIDTH columns a block; see `output_residual.leave_behind` for what is written.

    table bf16 or f32 [V, H]: the vocabulary's, or a stream of which some rows go on.
    """
    row, column = ct.bid(0), ct.bid(1)
    ct.grid_dependency_control_wait()
    ct.grid_dependency_control_launch_dependents()
    ids = ct.load(tokens, index=(row,), shape=(T,), allow_tma=False).reshape((T, 1))
    columns = (column * WIDTH + ct.arange(WIDTH, dtype=ct.int32)).reshape((1, WIDTH))
    stream = ct.gather(table, (ids, columns)).astype(ct.float32)  # [T, WIDTH]
    leave_behind(stream, gain_tile(norm, column, WIDTH), residual, z, squares, row, column)
