"""The kernels of the split output projection: for each number of splits, one row and several."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.qwen3.pieces import kernel_spec, squares_of
from kernels.qwen3.sizes import HEAD_DIM, ROWS, SPLITS, Sizes
from kernels.spec import KernelSpec, bf16, f32

SLICE_ROWS = 4  # outputs a block
SLICE_VALUES = 1024  # weights of one output that a block holds at once
SUM_COLUMNS = 32  # outputs a block of the one-row sum


def split_output(s: Sizes, square_width: int) -> Iterator[KernelSpec]:
    """Products of each slot, then their sum, for sizes that can be split.

    `square_width`: columns whose squares a block of rows sums.
    """
    for splits in SPLITS if s.can_split else ():
        size, slots = HEAD_DIM // splits, s.query_heads * splits
        heads = min(s.query_heads, SLICE_VALUES // size)
        shape = (s.query_heads, splits, size)
        for path, rows in (("one", 1), ("rows", ROWS)):
            yield kernel_spec(
                f"split{splits}.{path}",
                "output_split",
                "output_split.kernel:split_products",
                (
                    bf16("x", rows, *shape),
                    bf16("weight", s.hidden, *shape),
                    f32("partials", s.query_heads, splits, rows, s.hidden),
                ),
                {
                    "T": rows,
                    "ROWS": SLICE_ROWS,
                    "HEADS": heads,
                    "GROUPS": s.query_heads // heads,
                    "SLICE": size,
                    "LEVELS": size.bit_length() - 1,
                },
                (s.hidden // SLICE_ROWS, splits),
            )
        at_once = min(slots, 32)
        partials, residual = f32("partials", slots, 1, s.hidden), f32("residual", 1, s.hidden)
        yield kernel_spec(
            f"sum{splits}.one",
            "output_split",
            "output_split.kernel:add_partials",
            (partials, residual, bf16("hidden", 1, s.hidden)),
            {"COLUMNS": SUM_COLUMNS, "SLOTS": slots, "AT_ONCE": at_once},
            (s.hidden // SUM_COLUMNS,),
        )
        yield kernel_spec(
            f"sum{splits}.rows",
            "output_split",
            "output_split.kernel:add_partials_rows",
            (
                f32("partials", slots, ROWS, s.hidden),
                f32("residual", ROWS, s.hidden),
                bf16("norm", s.hidden),
                bf16("z", ROWS, s.hidden),
                squares_of(s.hidden, ROWS, square_width),
            ),
            {"T": ROWS, "COLUMNS": square_width, "SLOTS": slots, "AT_ONCE": min(slots, 8)},
            (s.hidden // square_width,),
        )
