"""The whole Qwen3 appliance as data: the kernels of a geometry, the launches of a step and of a prompt.

Standard library only: who builds a pack and who serves it read the same page. Three programs run on the
device. `decode_program` takes every live slot one token further. `prompt_program` brings pieces of prompts
into the caches of their slots. `predict_program` chooses the first token behind each prompt that ended.
Buffers have names; weights have those of the pack's tensors.

One row (bucket 1) takes the vector path. Buckets 2, 4 and 8, and the first tokens however many there are,
share one set of kernels on 8 rows: a row's result depends on that row alone, so it is the same in any of
them, and rows beyond the bucket hold anything. Nor does a prompt's row depend on the program it travels in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from kernels.read_bandwidth.spec import read_spec
from kernels.spec import Array, DType, KernelSpec, Launch
from kernels.tiles import Tile, Tiles

ROWS = 8  # rows of the tensor-core decode path
SLOTS = 8
HEAD_DIM = 128
KEYS = 64  # positions a decode attention block reads at once; the cache is padded to whole tiles
BANNED = 8  # tokens that a request can keep from coming early
VOCAB_PART = 1024
SAMPLE_STEPS = 16  # launches that find both thresholds, see `sampling`
PROMPT_ROWS = (64, 256, 1024)
PROMPT_GROUP = 64  # rows of a prompt program that belong to one piece
GROUP_FIELDS = ("slot", "first", "count")  # of each group: see `kernels.attention.kernel`


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the kernels are compiled for. `length`: positions a slot holds, whole tiles of `KEYS`."""

    layers: int
    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    vocab: int
    eps: float
    length: int

    def __post_init__(self) -> None:
        group = self.query_heads // self.kv_heads
        if group not in (1, 2, 4, 8):
            raise ValueError(f"query_heads: {group} to a key-value head; expected 1, 2, 4 or 8")
        for name in ("hidden", "intermediate"):
            if getattr(self, name) % 256:
                raise ValueError(f"{name}: {getattr(self, name)} is no multiple of 256")
        if self.length % KEYS:
            raise ValueError(f"length: {self.length} is no multiple of {KEYS}")

    @property
    def heads(self) -> int:
        """Query, key and value heads of one row."""
        return self.query_heads + 2 * self.kv_heads

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.query_heads // self.kv_heads

    @property
    def width(self) -> int:
        """Width of the attention's output."""
        return self.query_heads * HEAD_DIM

    @property
    def prompt_rows(self) -> tuple[int, ...]:
        """Rows of the prompt programs; the longest need not exceed what all slots hold."""
        return tuple(rows for rows in PROMPT_ROWS if rows <= SLOTS * self.length)

    @property
    def vocab_parts(self) -> int:
        """Parts the vocabulary is searched in."""
        return -(-self.vocab // VOCAB_PART)

    @property
    def parts(self) -> int:
        """Most blocks of columns that leave a sum of squares behind."""
        return self.hidden // 16

    def splits(self, bucket: int) -> int:
        """Blocks that share a slot's keys: as many as fit the chip at once, more of them for long slots."""
        return min(_power_of_two(self.length // KEYS), 4 if bucket > 2 else 8 if self.length <= 2048 else 32)


def work_buffers(sizes: Sizes, slots: int) -> tuple[Array, ...]:
    """Everything on the device that is no weight: streams' state, cache, activations."""
    s, most = sizes, max(sizes.prompt_rows)
    cache = tuple(
        Array(name=f"{kind}.{layer}", dtype="bf16", shape=(slots, s.kv_heads, s.length, HEAD_DIM))
        for layer in range(s.layers)
        for kind in ("keys", "values")
    )
    return (
        *(_i32(name, SLOTS) for name in ("tokens", "positions", "drawn", "until", "rows", "top_k", "chosen")),
        *(_f32(name, SLOTS) for name in ("temperature", "top_p", "uniform")),
        _i32("banned", SLOTS, BANNED),
        _i32("groups", most // PROMPT_GROUP, len(GROUP_FIELDS)),
        _i32("last_rows", SLOTS),
        _i32("last_slots", SLOTS),
        _i32("prompt", most),
        _f32("rotary", s.length, HEAD_DIM),
        *cache,
        _f32("wide", most, s.hidden),
        _f32("last_wide", ROWS, s.hidden),
        _bf16("narrow", most, s.hidden),
        _f32("squares", s.parts, most),
        _f32("qkv", ROWS, s.heads, HEAD_DIM),
        _bf16("prompt_qkv", most, s.heads, HEAD_DIM),
        _bf16("query", most, s.query_heads, HEAD_DIM),
        _bf16("mixed", most, s.query_heads, HEAD_DIM),
        _bf16("activated", most, s.intermediate),
        _f32("split_acc", SLOTS, s.query_heads, s.splits(1), HEAD_DIM),
        _f32("split_m", SLOTS, s.query_heads, s.splits(1), 1),
        _f32("split_l", SLOTS, s.query_heads, s.splits(1), 1),
        _i32("arrived", SLOTS, s.query_heads),
        _f32("logits", ROWS, s.vocab),
        _f32("best", ROWS, s.vocab_parts),
        _i32("where", ROWS, s.vocab_parts),
        *(_i32(f"search.{i}", ROWS, 3) for i in range(2)),
        *(_f32(f"goal.{i}", ROWS) for i in range(2)),
        *(_f32(f"above.{i}", ROWS, s.vocab_parts, 16) for i in range(2)),
    )


# Programs.


def decode_program(sizes: Sizes, bucket: int, choose: str = "greedy") -> tuple[Launch, ...]:
    """One step of `bucket` rows, slot i in row i; `choose` is greedy or sampled."""
    one = bucket == 1
    launches = [_embed_one() if one else _embed_rows("rows", "tokens")]
    for layer in range(sizes.layers):
        w = f"layers.{layer}."
        behind = "final_norm" if layer + 1 == sizes.layers else f"layers.{layer + 1}.attention_norm"
        attention = ("qkv", w + "attention.query_norm", w + "attention.key_norm", "rotary", "positions")
        splits = ("split_acc", "split_m", "split_l", "arrived", "mixed")
        cache = (f"keys.{layer}", f"values.{layer}")
        if one:
            launches += [
                _launch("qkv.one", "narrow", w + "attention_norm", w + "attention.qkv", "qkv"),
                _launch("attention.one", *attention, *cache, *splits),
                _launch("output.one", "mixed", w + "attention.output", "wide", "narrow"),
                _launch("gate_up.one", "narrow", w + "mlp_norm", w + "mlp.gate_up", "activated"),
                _launch("down.one", "activated", w + "mlp.down", "wide", "narrow"),
            ]
        else:
            left = ("narrow", "squares")
            launches += [
                _launch("qkv.rows", *left, w + "attention.qkv", "qkv"),
                _launch(f"attention.rows{bucket}", *attention, *cache, *splits),
                _launch("output.rows", "mixed", w + "attention.output", "wide", w + "mlp_norm", *left),
                _launch("gate_up.rows", *left, w + "mlp.gate_up", "activated"),
                _launch("down.rows", "activated", w + "mlp.down", "wide", behind, *left),
            ]
    if one:
        launches.append(_launch("head.one", "narrow", "final_norm", "head", "logits"))
    else:
        launches.append(_launch("head.rows", "narrow", "squares", "head", "logits"))
    return (*launches, *_choose(sizes, "rows", "rows", bucket, choose))


def prompt_program(sizes: Sizes, rows: int) -> tuple[Launch, ...]:
    """The tokens of `prompt` into the slots that `groups` name, PROMPT_GROUP rows for each of them."""
    p, left = f"prompt{rows}", ("narrow", "squares")
    launches = [_embed_rows(p, "prompt")]
    for layer in range(sizes.layers):
        w = f"layers.{layer}."
        behind = "final_norm" if layer + 1 == sizes.layers else f"layers.{layer + 1}.attention_norm"
        norms = (w + "attention.query_norm", w + "attention.key_norm")
        cache = (f"keys.{layer}", f"values.{layer}")
        launches += [
            _launch(f"qkv.{p}", *left, w + "attention.qkv", "prompt_qkv"),
            _launch(f"append.{p}", "prompt_qkv", *norms, "rotary", "groups", *cache, "query"),
            _launch(f"attention.{p}", "query", "groups", *cache, "mixed"),
            _launch(f"output.{p}", "mixed", w + "attention.output", "wide", w + "mlp_norm", *left),
            _launch(f"gate_up.{p}", *left, w + "mlp.gate_up", "activated"),
            _launch(f"down.{p}", "activated", w + "mlp.down", "wide", behind, *left),
        ]
    return tuple(launches)


def predict_program(sizes: Sizes, count: int, choose: str = "greedy") -> tuple[Launch, ...]:
    """The first tokens behind `count` prompts, from the stream's `last_rows`, for the slots `last_slots`.

    All of `last_rows` are read, so those beyond `count` must be rows too.
    """
    return (
        _launch("last", "last_rows", "wide", "last_wide", "final_norm", "narrow", "squares"),
        _launch("head.rows", "narrow", "squares", "head", "logits"),
        *_choose(sizes, "prompt", "last_slots", count, choose),
    )


def _choose(sizes: Sizes, name: str, slots: str, rows: int, choose: str) -> Iterator[Launch]:
    state, banned = ("tokens", "positions", "drawn", "chosen"), ("until", "banned")
    found = ("best", "where", slots)
    grid = (sizes.vocab_parts, rows, 1)
    yield _launch("argmax.rows", "logits", slots, "drawn", *banned, "best", "where", grid=grid)
    if choose == "greedy":
        yield _launch(f"greedy.{name}", *found, *state, grid=(rows, 1, 1))
        return
    settings = ("temperature", "top_k", "top_p")
    search = [tuple(f"{kind}.{i}" for kind in ("search", "goal", "above")) for i in range(2)]
    for step in range(SAMPLE_STEPS):  # an even number: the search ends in the set that it began in
        now, then = search[step % 2], search[(step + 1) % 2]
        yield _launch(
            "narrow.rows", "logits", "best", slots, *settings, "drawn", *banned, *now, *then, grid=grid
        )
    yield _launch(
        f"sampled.{name}",
        "logits",
        *found,
        *settings,
        "uniform",
        *banned,
        *search[SAMPLE_STEPS % 2],
        *state,
        grid=(rows, 1, 1),
    )


def _embed_one() -> Launch:
    return _launch("embedding.one", "tokens", "embedding", "wide", "narrow")


def _embed_rows(name: str, tokens: str) -> Launch:
    norm = "layers.0.attention_norm"
    return _launch(f"embedding.{name}", tokens, "embedding", "wide", norm, "narrow", "squares")


def _launch(kernel: str, *buffers: str, grid: tuple[int, int, int] | None = None) -> Launch:
    return Launch(kernel=kernel, buffers=buffers, grid=grid)


# Kernels.


def kernel_specs(sizes: Sizes, tiles: Tiles) -> tuple[KernelSpec, ...]:
    """Every kernel of the programs above, and the one that only reads; `tiles` are the target's."""
    step = (*_one_row(sizes, tiles), *_several_rows(sizes, tiles), *_prompts(sizes, tiles), *_choices(sizes))
    layer_bytes = 2 * sizes.hidden * (sizes.heads * HEAD_DIM + sizes.width + 3 * sizes.intermediate)
    return (*step, read_spec(layer_bytes))


def _one_row(s: Sizes, tiles: Tiles) -> Iterator[KernelSpec]:
    h, narrow, wide = s.hidden, _bf16("narrow", 1, s.hidden), _f32("wide", 1, s.hidden)
    yield _spec(
        "embedding.one",
        "embedding",
        "embedding.kernel:embedding",
        (_i32("tokens", 1), _bf16("table", s.vocab, h), wide, narrow),
        {"WIDTH": 256},
        (h // 256,),
    )
    qkv_rows = s.heads * HEAD_DIM
    for name, operation, rows in (("qkv", "rmsnorm_qkv", qkv_rows), ("head", "rmsnorm_head_argmax", s.vocab)):
        tile = tiles.vector(name, rows, h)
        yield _spec(
            f"{name}.one",
            operation,
            "rmsnorm_qkv.kernel:rmsnorm_linear",
            (narrow, _bf16("norm", h), _bf16("weight", rows, h), _f32("out", 1, rows)),
            {"EPS": s.eps, **tile.constants(h)},
            (rows // tile.rows,),
            tile,
        )
    tile = tiles.vector("gate_up", s.intermediate, h)
    yield _spec(
        "gate_up.one",
        "rmsnorm_gate_up_silu",
        "rmsnorm_gate_up_silu.kernel:gate_up_silu",
        (narrow, _bf16("norm", h), _bf16("weight", 2 * s.intermediate, h), _bf16("out", 1, s.intermediate)),
        {"EPS": s.eps, **tile.constants(h), "HALF": s.intermediate // tile.rows},
        (s.intermediate // tile.rows,),
        tile,
    )
    for name, operation, width in (
        ("output", "output_residual", s.width),
        ("down", "down_residual", s.intermediate),
    ):
        tile = tiles.vector(name, h, width)
        yield _spec(
            f"{name}.one",
            operation,
            "output_residual.kernel:linear_residual",
            (_bf16("x", 1, width), _bf16("weight", h, width), wide, narrow),
            tile.constants(width),
            (h // tile.rows,),
            tile,
        )
    yield _spec(
        "attention.one",
        "attention",
        "attention.kernel:attend",
        _decode_attention(s, s.splits(1)),
        {**_attention_constants(s), "LENGTH": s.length, "KEYS": KEYS, "SPLITS": s.splits(1)},
        (s.query_heads, s.splits(1)),
    )


def _several_rows(s: Sizes, tiles: Tiles) -> Iterator[KernelSpec]:
    h, wide = s.hidden, _f32("wide", ROWS, s.hidden)
    width = _square_width(s, tiles, "rows")
    squares = _squares(h, ROWS, width)
    for name, table in (
        ("embedding.rows", _bf16("table", s.vocab, h)),
        ("last", _f32("table", max(s.prompt_rows), h)),
    ):
        yield _embedding_rows(name, table, ROWS, ROWS, width)
    parts = _power_of_two(squares.shape[0])
    qkv_rows = s.heads * HEAD_DIM
    for name, operation, rows in (("qkv", "rmsnorm_qkv", qkv_rows), ("head", "rmsnorm_head_argmax", s.vocab)):
        tile = tiles.rows(name, rows, h)
        yield _spec(
            f"{name}.rows",
            operation,
            "rmsnorm_qkv.kernel:scaled_linear_rows",
            (
                _stacked("z", ROWS, h, tile),
                squares,
                _stacked("weight", rows, h, tile),
                _f32("out", ROWS, rows),
            ),
            {"EPS": s.eps, "T": ROWS, "PARTS": parts, **tile.constants(h)},
            (rows // tile.rows,),
            tile,
        )
    tile = tiles.rows("gate_up", s.intermediate, h)
    yield _spec(
        "gate_up.rows",
        "rmsnorm_gate_up_silu",
        "rmsnorm_gate_up_silu.kernel:gate_up_silu_rows",
        (
            _stacked("z", ROWS, h, tile),
            squares,
            _stacked("weight", 2 * s.intermediate, h, tile),
            _bf16("out", ROWS, s.intermediate),
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
        yield _spec(
            f"{name}.rows",
            operation,
            "output_residual.kernel:linear_residual_rows",
            (
                _stacked("x", ROWS, width, tile),
                _stacked("weight", h, width, tile),
                wide,
                _bf16("norm", h),
                _bf16("z", ROWS, h),
                squares,
            ),
            {"T": ROWS, **tile.constants(width)},
            (h // tile.rows,),
            tile,
        )
    for bucket in (2, 4, 8):
        splits = s.splits(bucket)
        yield _spec(
            f"attention.rows{bucket}",
            "attention",
            "attention.kernel:attend_rows",
            _decode_attention(s, splits),
            {
                **_attention_constants(s),
                "HEADS": s.group,
                "LENGTH": s.length,
                "KEYS": KEYS,
                "SPLITS": splits,
            },
            (s.kv_heads, splits, bucket),
        )


def _prompts(s: Sizes, tiles: Tiles) -> Iterator[KernelSpec]:
    h, qkv_rows = s.hidden, s.heads * HEAD_DIM
    cache = (
        _bf16("keys", SLOTS, s.kv_heads, s.length, HEAD_DIM),
        _bf16("values", SLOTS, s.kv_heads, s.length, HEAD_DIM),
    )
    for rows in s.prompt_rows:
        p = f"prompt{rows}"
        width = _square_width(s, tiles, p)
        yield _embedding_rows(f"embedding.{p}", _bf16("table", s.vocab, h), rows, 16, width)
        z, wide, norm = _bf16("z", rows, h), _f32("wide", rows, h), _bf16("norm", h)
        squares = _squares(h, rows, width)
        parts = _power_of_two(squares.shape[0])
        tile = tiles.prompt("qkv", rows, qkv_rows, h)
        yield _spec(
            f"qkv.{p}",
            "rmsnorm_qkv",
            "rmsnorm_qkv.kernel:scaled_linear_prompt",
            (z, squares, _bf16("weight", qkv_rows, h), _bf16("out", rows, qkv_rows)),
            {"EPS": s.eps, "PARTS": parts, **tile.constants(h)},
            (qkv_rows // tile.rows, rows // tile.t),
            tile,
        )
        tile = tiles.prompt("gate_up", rows, s.intermediate, h)
        yield _spec(
            f"gate_up.{p}",
            "rmsnorm_gate_up_silu",
            "rmsnorm_gate_up_silu.kernel:gate_up_silu_prompt",
            (z, squares, _bf16("weight", 2 * s.intermediate, h), _bf16("out", rows, s.intermediate)),
            {"EPS": s.eps, "PARTS": parts, **tile.constants(h), "HALF": s.intermediate // tile.rows},
            (s.intermediate // tile.rows, rows // tile.t),
            tile,
        )
        for name, operation, width in (
            ("output", "output_residual", s.width),
            ("down", "down_residual", s.intermediate),
        ):
            tile = tiles.prompt(name, rows, h, width)
            yield _spec(
                f"{name}.{p}",
                operation,
                "output_residual.kernel:linear_residual_prompt",
                (_bf16("x", rows, width), _bf16("weight", h, width), wide, norm, z, squares),
                tile.constants(width),
                (h // tile.rows, rows // tile.t),
                tile,
            )
        norms = (_bf16("query_norm", HEAD_DIM), _bf16("key_norm", HEAD_DIM))
        groups = _i32("groups", rows // PROMPT_GROUP, len(GROUP_FIELDS))
        query = _bf16("query", rows, s.query_heads, HEAD_DIM)
        yield _spec(
            f"append.{p}",
            "attention",
            "attention.kernel:append_prompt",
            (
                _bf16("qkv", rows, s.heads, HEAD_DIM),
                *norms,
                _f32("rotary", s.length, HEAD_DIM),
                groups,
                *cache,
                query,
            ),
            {**_attention_constants(s), "HEADS": s.group, "T": 4, "GROUP": PROMPT_GROUP},
            (s.kv_heads, rows // 4),
        )
        tile = _prompt_attention_tile(s, tiles, rows)
        yield _spec(
            f"attention.{p}",
            "attention",
            "attention.kernel:attend_prompt",
            (query, groups, *cache, _bf16("out", rows, s.query_heads, HEAD_DIM)),
            {"HQ": s.query_heads, "HKV": s.kv_heads, "T": tile.t, "KEYS": KEYS, "GROUP": PROMPT_GROUP},
            (rows // tile.t, s.query_heads),
            tile,
        )


def _choices(s: Sizes) -> Iterator[KernelSpec]:
    parts, padded = s.vocab_parts, _power_of_two(s.vocab_parts)
    logits, best = _f32("logits", ROWS, s.vocab), _f32("best", ROWS, parts)
    where, banned = _i32("where", ROWS, parts), _i32("banned", SLOTS, BANNED)
    drawn, until = _i32("drawn", SLOTS), _i32("until", SLOTS)
    state = (_i32("tokens", SLOTS), _i32("positions", SLOTS), drawn, _i32("chosen", SLOTS))
    slots = _i32("slots", SLOTS)
    settings = (_f32("temperature", SLOTS), _i32("top_k", SLOTS), _f32("top_p", SLOTS))
    search = (_i32("search", ROWS, 3), _f32("goal", ROWS), _f32("above", ROWS, parts, 16))
    vocabulary = {"VOCAB": s.vocab, "WIDTH": VOCAB_PART, "PARTS": padded, "BANNED": BANNED}
    yield _spec(
        "argmax.rows",
        "rmsnorm_head_argmax",
        "rmsnorm_head_argmax.kernel:argmax_parts",
        (logits, slots, drawn, until, banned, best, where),
        {"WIDTH": VOCAB_PART, "BANNED": BANNED},
        (parts, ROWS),
    )
    yield _spec(
        "narrow.rows",
        "sampling",
        "sampling.kernel:narrow",
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
        yield _spec(
            f"greedy.{name}",
            "rmsnorm_head_argmax",
            "rmsnorm_head_argmax.kernel:argmax_choose",
            (best, where, slots, *state),
            {"PARTS": padded, "LENGTH": s.length, "ADVANCE": advance},
            (ROWS,),
        )
        yield _spec(
            f"sampled.{name}",
            "sampling",
            "sampling.kernel:draw",
            (
                logits,
                best,
                where,
                slots,
                *settings,
                _f32("uniform", SLOTS),
                until,
                banned,
                *search,
                *state,
            ),
            {**vocabulary, "LENGTH": s.length, "ADVANCE": advance},
            (ROWS,),
        )


def _embedding_rows(name: str, table: Array, rows: int, t: int, width: int) -> KernelSpec:
    """Rows of `table` as `output_residual` leaves its own, with the squares of `width` columns a block."""
    h = table.shape[1]
    return _spec(
        name,
        "embedding",
        "embedding.kernel:embedding_rows",
        (
            _i32("tokens", rows),
            table,
            _f32("wide", rows, h),
            _bf16("norm", h),
            _bf16("z", rows, h),
            _squares(h, rows, width),
        ),
        {"T": t, "WIDTH": width},
        (rows // t, h // width),
    )


def _decode_attention(s: Sizes, splits: int) -> tuple[Array, ...]:
    cache = (SLOTS, s.kv_heads, s.length, HEAD_DIM)
    return (
        _f32("qkv", ROWS, s.heads, HEAD_DIM),
        _bf16("query_norm", HEAD_DIM),
        _bf16("key_norm", HEAD_DIM),
        _f32("rotary", s.length, HEAD_DIM),
        _i32("positions", SLOTS),
        _bf16("keys", *cache),
        _bf16("values", *cache),
        _f32("split_acc", SLOTS, s.query_heads, splits, HEAD_DIM),
        _f32("split_m", SLOTS, s.query_heads, splits, 1),
        _f32("split_l", SLOTS, s.query_heads, splits, 1),
        _i32("arrived", SLOTS, s.query_heads),
        _bf16("out", ROWS, s.query_heads, HEAD_DIM),
    )


def _attention_constants(s: Sizes) -> dict[str, int | float]:
    return {
        "EPS": s.eps,
        "SCALE": math.log2(math.e) / math.sqrt(HEAD_DIM),
        "HQ": s.query_heads,
        "HKV": s.kv_heads,
    }


def _spec(
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


def _squares(hidden: int, rows: int, width: int) -> Array:
    """Sums of squares of `rows` rows, one for each block of `width` columns."""
    return _f32("squares", hidden // width, rows)


def _array(name: str, dtype: DType, shape: tuple[int, ...]) -> Array:
    return Array(name=name, dtype=dtype, shape=shape)


def _bf16(name: str, *shape: int) -> Array:
    return _array(name, "bf16", shape)


def _f32(name: str, *shape: int) -> Array:
    return _array(name, "f32", shape)


def _stacked(name: str, rows: int, reduction: int, tile: Tile) -> Array:
    """bf16 [rows, reduction] with the reduction cut into the parts that a tile stacks."""
    return _bf16(name, rows, tile.stack, reduction // tile.stack)


def _i32(name: str, *shape: int) -> Array:
    return _array(name, "i32", shape)


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
