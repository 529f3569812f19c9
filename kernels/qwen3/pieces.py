"""What kernels of one row, of several and of prompts have in common, as specifications."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from kernels.qwen3.sizes import HEAD_DIM, KEYS, ROWS, SLOTS, Sizes
from kernels.spec import Array, KernelSpec, bf16, f32, i32
from kernels.tiles import Tile


def embedding_rows(name: str, table: Array, rows: int, t: int, width: int) -> KernelSpec:
    """Rows of `table` as `output_residual` leaves its own, with the squares of `width` columns a block."""
    h = table.shape[1]
    return kernel_spec(
        name,
        "embedding",
        "embedding.kernel:embedding_rows",
        (
            i32("tokens", rows),
            table,
            f32("residual", rows, h),
            bf16("norm", h),
            bf16("z", rows, h),
            squares_of(h, rows, width),
        ),
        {"T": t, "WIDTH": width},
        (rows // t, h // width),
    )


def attention_of_steps(s: Sizes) -> Iterator[KernelSpec]:
    """Attention of one row, and of each bucket of several."""
    yield kernel_spec(
        "attention.one",
        "attention",
        "attention.kernel:attend",
        decode_attention(s, s.splits(1)),
        {**attention_constants(s), "LENGTH": s.length, "KEYS": KEYS, "SPLITS": s.splits(1)},
        (s.query_heads, s.splits(1)),
    )
    for bucket in (2, 4, 8):
        splits = s.splits(bucket)
        yield kernel_spec(
            f"attention.rows{bucket}",
            "attention",
            "attention.kernel:attend_rows",
            decode_attention(s, splits),
            {
                **attention_constants(s),
                "HEADS": s.group,
                "LENGTH": s.length,
                "KEYS": KEYS,
                "SPLITS": splits,
            },
            (s.kv_heads, splits, bucket),
        )


def decode_attention(s: Sizes, splits: int) -> tuple[Array, ...]:
    cache = (SLOTS, s.kv_heads, s.length, HEAD_DIM)
    return (
        f32("qkv", ROWS, s.heads, HEAD_DIM),
        bf16("query_norm", HEAD_DIM),
        bf16("key_norm", HEAD_DIM),
        f32("rotary", s.length, HEAD_DIM),
        i32("positions", SLOTS),
        bf16("keys", *cache),
        bf16("values", *cache),
        f32("split_acc", SLOTS, s.query_heads, splits, HEAD_DIM),
        f32("split_m", SLOTS, s.query_heads, splits, 1),
        f32("split_l", SLOTS, s.query_heads, splits, 1),
        i32("arrived", SLOTS, s.query_heads),
        bf16("out", ROWS, s.query_heads, HEAD_DIM),
    )


def attention_constants(s: Sizes) -> dict[str, int | float]:
    return {
        "EPS": s.eps,
        "SCALE": math.log2(math.e) / math.sqrt(HEAD_DIM),
        "HQ": s.query_heads,
        "HKV": s.kv_heads,
    }


def kernel_spec(
    name: str,
    operation: str,
    function: str,
    arrays: tuple[Array, ...],
    constants: Mapping[str, int | float],
    grid: tuple[int, ...],
    hints: Tile | None = None,
) -> KernelSpec:
    x, y, z = (*grid, 1, 1)[:3]
    return KernelSpec(
        name=name,
        operation=operation,
        function=function,
        arrays=arrays,
        constants=tuple(constants.items()),
        grid=(x, y, z),
        occupancy=hints.occupancy if hints else None,
        warps=hints.warps if hints else None,
        spills=hints is not None and hints.spills,
    )


def squares_of(hidden: int, rows: int, width: int) -> Array:
    """Sums of squares of `rows` rows, one for each block of `width` columns."""
    return f32("squares", hidden // width, rows)
