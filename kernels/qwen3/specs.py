"""Every kernel of the programs: function, arrays, constants and grid, with the target's tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kernels.qwen3.encoded import encoded_products
from kernels.qwen3.pieces import (
    attention_constants,
    attention_of_steps,
    embedding_rows,
    kernel_spec,
    squares_of,
)
from kernels.qwen3.sizes import (
    BANNED,
    GROUP_FIELDS,
    HEAD_DIM,
    KEYS,
    PROMPT_GROUP,
    ROWS,
    SLOTS,
    VOCAB_PART,
    Sizes,
    power_of_two,
)
from kernels.qwen3.split import split_output
from kernels.read_bandwidth.spec import read_spec
from kernels.spec import Array, KernelSpec, bf16, f32, i32
from kernels.tiles import Tile, Tiles


def kernel_specs(sizes: Sizes, tiles: Tiles) -> tuple[KernelSpec, ...]:
    """Every kernel of the programs, and the one that only reads; `tiles` are the target's."""
    if sizes.encoding == "bf16":
        products = (
            *_one_row(sizes, tiles),
            *_several_rows(sizes, tiles),
            *split_output(sizes, _square_width(sizes, tiles, "rows")),
        )
    else:
        products = tuple(encoded_products(sizes, tiles))
    step = (*products, *attention_of_steps(sizes), *_prompts(sizes, tiles), *_choices(sizes))
    layer_bytes = 2 * sizes.hidden * (sizes.heads * HEAD_DIM + sizes.width + 3 * sizes.intermediate)
    return (*step, read_spec(layer_bytes))


def _one_row(s: Sizes, tiles: Tiles) -> Iterator[KernelSpec]:
    h, hidden, residual = s.hidden, bf16("hidden", 1, s.hidden), f32("residual", 1, s.hidden)
    yield kernel_spec(
        "embedding.one",
        "embedding",
        "embedding.kernel:embedding",
        (i32("tokens", 1), bf16("table", s.vocab, h), residual, hidden),
        {"WIDTH": 256},
        (h // 256,),
    )
    qkv_rows = s.heads * HEAD_DIM
    for name, operation, rows in (("qkv", "rmsnorm_qkv", qkv_rows), ("head", "rmsnorm_head_argmax", s.vocab)):
        tile = tiles.vector(name, rows, h)
        yield kernel_spec(
            f"{name}.one",
            operation,
            "rmsnorm_qkv.kernel:rmsnorm_linear",
            (hidden, bf16("norm", h), bf16("weight", rows, h), f32("out", 1, rows)),
            {"EPS": s.eps, **tile.constants(h)},
            (rows // tile.rows,),
            tile,
        )
    tile = tiles.vector("gate_up", s.intermediate, h)
    yield kernel_spec(
        "gate_up.one",
        "rmsnorm_gate_up_silu",
        "rmsnorm_gate_up_silu.kernel:gate_up_silu",
        (hidden, bf16("norm", h), bf16("weight", 2 * s.intermediate, h), bf16("out", 1, s.intermediate)),
        {"EPS": s.eps, **tile.constants(h), "HALF": s.intermediate // tile.rows},
        (s.intermediate // tile.rows,),
        tile,
    )
    for name, operation, width in (
        ("output", "output_residual", s.width),
        ("down", "down_residual", s.intermediate),
    ):
        tile = tiles.vector(name, h, width)
        yield kernel_spec(
            f"{name}.one",
            operation,
            "output_residual.kernel:linear_residual",
            (bf16("x", 1, width), bf16("weight", h, width), residual, hidden),
            tile.constants(width),
            (h // tile.rows,),
            tile,
        )


def _several_rows(s: Sizes, tiles: Tiles) -> Iterator[KernelSpec]:
    h, residual = s.hidden, f32("residual", ROWS, s.hidden)
    width = _square_width(s, tiles, "rows")
    squares = squares_of(h, ROWS, width)
    for name, table in (
        ("embedding.rows", bf16("table", s.vocab, h)),
        ("last", f32("table", max(s.prompt_rows), h)),
    ):
        yield embedding_rows(name, table, ROWS, ROWS, width)
    parts = power_of_two(squares.shape[0])
    qkv_rows = s.heads * HEAD_DIM
    for name, operation, rows in (("qkv", "rmsnorm_qkv", qkv_rows), ("head", "rmsnorm_head_argmax", s.vocab)):
        tile = tiles.rows(name, rows, h)
        yield kernel_spec(
            f"{name}.rows",
            operation,
            "rmsnorm_qkv.kernel:scaled_linear_rows",
            (
                _stacked("z", ROWS, h, tile),
                squares,
                _stacked("weight", rows, h, tile),
                f32("out", ROWS, rows),
            ),
            {"EPS": s.eps, "T": ROWS, "PARTS": parts, **tile.constants(h)},
            (rows // tile.rows,),
            tile,
        )
    tile = tiles.rows("gate_up", s.intermediate, h)
    yield kernel_spec(
        "gate_up.rows",
        "rmsnorm_gate_up_silu",
        "rmsnorm_gate_up_silu.kernel:gate_up_silu_rows",
        (
            _stacked("z", ROWS, h, tile),
            squares,
            _stacked("weight", 2 * s.intermediate, h, tile),
            bf16("out", ROWS, s.intermediate),
        ),
        {
            "EPS": s.eps,
            "T": ROWS,
            "PARTS": parts,
            **tile.constants(h),
            "HALF": s.intermediate // tile.rows,
        },
        (s.intermediate // tile.rows,),
        tile,
    )
    for name, operation, width in (
        ("output", "output_residual", s.width),
        ("down", "down_residual", s.intermediate),
    ):
        tile = tiles.rows(name, h, width)
        yield kernel_spec(
            f"{name}.rows",
            operation,
            "output_residual.kernel:linear_residual_rows",
            (
                _stacked("x", ROWS, width, tile),
                _stacked("weight", h, width, tile),
                residual,
                bf16("norm", h),
                bf16("z", ROWS, h),
                squares,
            ),
            {"T": ROWS, **tile.constants(width)},
            (h // tile.rows,),
            tile,
        )


def _prompts(s: Sizes, tiles: Tiles) -> Iterator[KernelSpec]:
    h, qkv_rows = s.hidden, s.heads * HEAD_DIM
    cache = (
        bf16("keys", SLOTS, s.kv_heads, s.length, HEAD_DIM),
        bf16("values", SLOTS, s.kv_heads, s.length, HEAD_DIM),
    )
    for rows in s.prompt_rows:
        p = f"prompt{rows}"
        width = _square_width(s, tiles, p)
        yield embedding_rows(f"embedding.{p}", bf16("table", s.vocab, h), rows, 16, width)
        z, residual, norm = bf16("z", rows, h), f32("residual", rows, h), bf16("norm", h)
        squares = squares_of(h, rows, width)
        parts = squares.shape[0]
        tile = tiles.prompt("qkv", rows, qkv_rows, h)
        yield kernel_spec(
            f"qkv.{p}",
            "rmsnorm_qkv",
            "rmsnorm_qkv.kernel:scaled_linear_prompt",
            (z, squares, bf16("weight", qkv_rows, h), bf16("out", rows, qkv_rows)),
            {"EPS": s.eps, "PARTS": parts, **tile.constants(h)},
            (qkv_rows // tile.rows, rows // tile.t),
            tile,
        )
        tile = tiles.prompt("gate_up", rows, s.intermediate, h)
        yield kernel_spec(
            f"gate_up.{p}",
            "rmsnorm_gate_up_silu",
            "rmsnorm_gate_up_silu.kernel:gate_up_silu_prompt",
            (z, squares, bf16("weight", 2 * s.intermediate, h), bf16("out", rows, s.intermediate)),
            {"EPS": s.eps, "PARTS": parts, **tile.constants(h), "HALF": s.intermediate // tile.rows},
            (s.intermediate // tile.rows, rows // tile.t),
            tile,
        )
        for name, operation, width in (
            ("output", "output_residual", s.width),
            ("down", "down_residual", s.intermediate),
        ):
            tile = tiles.prompt(name, rows, h, width)
            yield kernel_spec(
                f"{name}.{p}",
                operation,
                "output_residual.kernel:linear_residual_prompt",
                (bf16("x", rows, width), bf16("weight", h, width), residual, norm, z, squares),
                tile.constants(width),
                (h // tile.rows, rows // tile.t),
                tile,
            )
        norms = (bf16("query_norm", HEAD_DIM), bf16("key_norm", HEAD_DIM))
        groups = i32("groups", rows // PROMPT_GROUP, len(GROUP_FIELDS))
        query = bf16("query", rows, s.query_heads, HEAD_DIM)
        yield kernel_spec(
            f"append.{p}",
            "attention",
            "attention.kernel:append_prompt",
            (
                bf16("qkv", rows, s.heads, HEAD_DIM),
                *norms,
                f32("rotary", s.length, HEAD_DIM),
                groups,
                *cache,
                query,
            ),
            {**attention_constants(s), "HEADS": s.group, "T": 4, "GROUP": PROMPT_GROUP},
            (s.kv_heads, rows // 4),
        )
        tile = _prompt_attention_tile(s, tiles, rows)
        yield kernel_spec(
            f"attention.{p}",
            "attention",
            "attention.kernel:attend_prompt",
            (query, groups, *cache, bf16("out", rows, s.query_heads, HEAD_DIM)),
            {"HQ": s.query_heads, "HKV": s.kv_heads, "T": tile.t, "KEYS": KEYS, "GROUP": PROMPT_GROUP},
            (rows // tile.t, s.query_heads),
            tile,
        )


def _choices(s: Sizes) -> Iterator[KernelSpec]:
    parts, padded = s.vocab_parts, power_of_two(s.vocab_parts)
    logits, best = f32("logits", ROWS, s.vocab), f32("best", ROWS, parts)
    where, banned = i32("where", ROWS, parts), i32("banned", SLOTS, BANNED)
    drawn, until = i32("drawn", SLOTS), i32("until", SLOTS)
    state = (i32("tokens", SLOTS), i32("positions", SLOTS), drawn, i32("chosen", SLOTS))
    slots = i32("slots", SLOTS)
    settings = (f32("temperature", SLOTS), i32("top_k", SLOTS), f32("top_p", SLOTS))
    search = (i32("search", ROWS, 3), f32("goal", ROWS), f32("above", ROWS, parts, 16))
    vocabulary = {"VOCAB": s.vocab, "WIDTH": VOCAB_PART, "PARTS": padded, "BANNED": BANNED}
    yield kernel_spec(
        "argmax.rows",
        "rmsnorm_head_argmax",
        "rmsnorm_head_argmax.kernel:argmax_parts",
        (logits, slots, drawn, until, banned, best, where),
        {"WIDTH": VOCAB_PART, "BANNED": BANNED},
        (parts, ROWS),
    )
    yield kernel_spec(
        "search.rows",
        "sampling",
        "sampling.kernel:search_digit",
        (
            logits,
            best,
            slots,
            *settings,
            drawn,
            until,
            banned,
            *search,
            *(replace(array, name=f"next_{array.name}") for array in search),
        ),
        vocabulary,
        (parts, ROWS),
    )
    for name, advance in (("rows", 1), ("prompt", 0)):
        yield kernel_spec(
            f"greedy.{name}",
            "rmsnorm_head_argmax",
            "rmsnorm_head_argmax.kernel:argmax_choose",
            (best, where, slots, *state),
            {"PARTS": padded, "LENGTH": s.length, "ADVANCE": advance},
            (ROWS,),
        )
        yield kernel_spec(
            f"sampled.{name}",
            "sampling",
            "sampling.kernel:draw",
            (
                logits,
                best,
                where,
                slots,
                *settings,
                f32("uniform", SLOTS),
                until,
                banned,
                *search,
                *state,
            ),
            {**vocabulary, "LENGTH": s.length, "ADVANCE": advance},
            (ROWS,),
        )


def _square_width(s: Sizes, tiles: Tiles, path: str) -> int:
    """Columns whose squares one block of this path sums: the rows of its output and down tiles."""
    shapes = {"output": s.width, "down": s.intermediate}
    if path == "rows":
        widths = {tiles.rows(name, s.hidden, width).rows for name, width in shapes.items()}
    else:
        t = int(path.removeprefix("prompt"))
        widths = {tiles.prompt(name, t, s.hidden, width).rows for name, width in shapes.items()}
    if len(widths) != 1:
        raise ValueError(
            f"{tiles.target}: {path}: output and down must have tiles of equal rows, got {widths}"
        )
    return widths.pop()


def _prompt_attention_tile(s: Sizes, tiles: Tiles, rows: int) -> Tile:
    """The tile of one program; its rows a block are one number for all, for they choose the instruction.

    With less than 64 rows a block the tensor core of sm_90 rounds otherwise than with more.
    """
    found = {t: tiles.prompt_attention(t) for t in s.prompt_rows}
    heights = {tile.t for tile in found.values()}
    if len(heights) != 1 or PROMPT_GROUP % min(heights):
        raise ValueError(
            f"{tiles.target}: prompt attention must have one t that divides {PROMPT_GROUP}, got {heights}"
        )
    return found[rows]


def _stacked(name: str, rows: int, reduction: int, tile: Tile) -> Array:
    """bf16 [rows, reduction] with the reduction cut into the parts that a tile stacks."""
    return bf16(name, rows, tile.stack, reduction // tile.stack)
