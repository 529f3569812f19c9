"""The whole Qwen3 appliance as data: the kernels of a geometry, the launches of a step and of a prompt.

Standard library only: who builds a pack and who serves it read the same page. Three programs run on the
device. `decode_program` takes every live slot one token further. `prompt_program` brings a chunk of prompt
tokens into one slot's cache. `predict_program` chooses the first token behind a prompt. Buffers have
names; weights have those of the pack's tensors.

One row (bucket 1, and the first token) takes the vector path. Buckets 2, 4 and 8 share one set of kernels
on 8 rows: a row's result depends on that row alone, so it is the same in any of them, and rows beyond the
bucket hold anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kernels.read_bandwidth.spec import read_spec
from kernels.spec import Array, DType, KernelSpec, Launch
from kernels.tiles import Tile, Tiles

ROWS = 8  # rows of the tensor-core decode path
SLOTS = 8
HEAD_DIM = 128
KEYS = 64  # positions a decode attention block reads at once; the cache is padded to whole tiles
BANNED = 8  # tokens that a request can keep from coming early
VOCAB_PART = 1024
SAMPLE_PART = 512  # of the vocabulary; 1024 spilled registers
PROMPT_ROWS = (64, 256, 1024)
SPAN = ("slot", "first", "count", "last")


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
        """Prompt chunks there are programs for; the longest need not exceed a slot."""
        fitting = [rows for rows in PROMPT_ROWS if rows <= max(self.length, PROMPT_ROWS[0])]
        return tuple(fitting)

    @property
    def vocab_parts(self) -> int:
        """Parts the vocabulary is searched in."""
        return -(-self.vocab // VOCAB_PART)

    @property
    def parts(self) -> int:
        """Most blocks of columns that leave a sum of squares behind."""
        return self.hidden // 64

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
        _i32("span", len(SPAN)),
        _i32("last", 1),
        _i32("vocab_parts", 1),
        _i32("prompt", most),
        _f32("rotary", s.length, HEAD_DIM),
        *cache,
        _f32("wide", most, s.hidden),
        _bf16("narrow", most, s.hidden),
        _f32("squares", s.parts, most),
        _f32("qkv", ROWS, s.heads, HEAD_DIM),
        _bf16("prompt_qkv", most, s.heads, HEAD_DIM),
        _bf16("query", most, s.query_heads, HEAD_DIM),
        _bf16("mixed", most, s.query_heads, HEAD_DIM),
        _bf16("activated", most, s.intermediate),
        _f32("attention_parts", SLOTS, s.query_heads, s.splits(1), HEAD_DIM),
        _f32("attention_tops", SLOTS, s.query_heads, s.splits(1), 1),
        _f32("attention_sums", SLOTS, s.query_heads, s.splits(1), 1),
        _i32("arrived", SLOTS, s.query_heads),
        _f32("logits", ROWS, s.vocab),
        _f32("best", ROWS, s.vocab_parts),
        _i32("where", ROWS, s.vocab_parts),
    )


# Programs.


def decode_program(sizes: Sizes, bucket: int, choose: str = "greedy") -> tuple[Launch, ...]:
    """One step of `bucket` rows, slot i in row i; `choose` is greedy or sampled."""
    one = bucket == 1
    launches = [*(_embed_one("tokens") if one else _embed_rows("rows", "tokens", "layers.0.attention_norm"))]
    for layer in range(sizes.layers):
        w = f"layers.{layer}."
        behind = "final_norm" if layer + 1 == sizes.layers else f"layers.{layer + 1}.attention_norm"
        attention = ("qkv", w + "attention.query_norm", w + "attention.key_norm", "rotary", "positions")
        parts = ("attention_parts", "attention_tops", "attention_sums", "arrived", "mixed")
        cache = (f"keys.{layer}", f"values.{layer}")
        if one:
            launches += [
                _launch("qkv.one", "narrow", w + "attention_norm", w + "attention.qkv", "qkv"),
                _launch("attention.one", *attention, *cache, *parts),
                _launch("output.one", "mixed", w + "attention.output", "wide", "narrow"),
                _launch("gate_up.one", "narrow", w + "mlp_norm", w + "mlp.gate_up", "activated"),
                _launch("down.one", "activated", w + "mlp.down", "wide", "narrow"),
            ]
        else:
            left = ("narrow", "squares")
            launches += [
                _launch("qkv.rows", *left, w + "attention.qkv", "qkv"),
                _launch(f"attention.rows{bucket}", *attention, *cache, *parts),
                _launch("output.rows", "mixed", w + "attention.output", "wide", w + "mlp_norm", *left),
                _launch("gate_up.rows", *left, w + "mlp.gate_up", "activated"),
                _launch("down.rows", "activated", w + "mlp.down", "wide", behind, *left),
            ]
    if one:
        launches.append(_launch("head.one", "narrow", "final_norm", "head", "logits"))
    else:
        launches.append(_launch("head.rows", "narrow", "squares", "head", "logits"))
    return (*launches, *_choose("rows", "rows", choose, (sizes.vocab_parts, bucket)))


def prompt_program(sizes: Sizes, rows: int) -> tuple[Launch, ...]:
    """Up to `rows` tokens of `prompt` into the slot that `span` names."""
    p, left = f"prompt{rows}", ("narrow", "squares")
    launches = [*_embed_rows(p, "prompt", "layers.0.attention_norm")]
    for layer in range(sizes.layers):
        w = f"layers.{layer}."
        behind = "final_norm" if layer + 1 == sizes.layers else f"layers.{layer + 1}.attention_norm"
        norms = (w + "attention.query_norm", w + "attention.key_norm")
        cache = (f"keys.{layer}", f"values.{layer}")
        launches += [
            _launch(f"qkv.{p}", *left, w + "attention.qkv", "prompt_qkv"),
            _launch(f"append.{p}", "prompt_qkv", *norms, "rotary", "span", *cache, "query"),
            _launch(f"attention.{p}", "query", "span", *cache, "mixed"),
            _launch(f"output.{p}", "mixed", w + "attention.output", "wide", w + "mlp_norm", *left),
            _launch(f"gate_up.{p}", *left, w + "mlp.gate_up", "activated"),
            _launch(f"down.{p}", "activated", w + "mlp.down", "wide", behind, *left),
        ]
    return tuple(launches)


def predict_program(sizes: Sizes, choose: str = "greedy") -> tuple[Launch, ...]:
    """The first token behind a prompt, from the stream's row `last`, for the slot that `span` names."""
    return (
        _launch("last", "last", "wide", "wide", "narrow"),
        _launch("head.one", "narrow", "final_norm", "head", "logits"),
        *_choose("prompt", "span", choose, (sizes.vocab_parts, 1)),
    )


def _choose(name: str, slots: str, choose: str, grid: tuple[int, int]) -> tuple[Launch, ...]:
    parts, rows = grid
    state, banned = ("tokens", "positions", "drawn", "chosen"), ("until", "banned")
    found = ("best", "where", slots)
    search = _launch(
        f"argmax.{name}", "logits", slots, "drawn", *banned, "best", "where", grid=(parts, rows, 1)
    )
    if choose == "greedy":
        return (search, _launch(f"greedy.{name}", *found, *state, grid=(rows, 1, 1)))
    settings = ("temperature", "top_k", "top_p", "uniform")
    sample = _launch(
        f"sampled.{name}", "logits", *found, *settings, *banned, "vocab_parts", *state, grid=(rows, 1, 1)
    )
    return (search, sample)


def _embed_one(tokens: str) -> Iterator[Launch]:
    yield _launch("embedding.one", tokens, "embedding", "wide", "narrow")


def _embed_rows(name: str, tokens: str, norm: str) -> Iterator[Launch]:
    yield _launch(f"embedding.{name}", tokens, "embedding", "wide", norm, "narrow", "squares")


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
    for name, table, width in (
        ("embedding.one", _bf16("table", s.vocab, h), 256),
        ("last", _f32("table", max(s.prompt_rows), h), 256),
    ):
        yield _spec(
            name,
            "embedding",
            "embedding.kernel:embedding",
            (_i32("tokens", 1), table, wide, narrow),
            {"WIDTH": width},
            (h // width,),
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
    h, z, wide = s.hidden, _bf16("z", ROWS, s.hidden), _f32("wide", ROWS, s.hidden)
    yield _embedding_rows(s, "rows", ROWS, ROWS, tiles)
    squares = _squares(h, ROWS, _square_width(s, tiles, "rows"))
    parts = _power_of_two(squares.shape[0])
    qkv_rows = s.heads * HEAD_DIM
    for name, operation, rows in (("qkv", "rmsnorm_qkv", qkv_rows), ("head", "rmsnorm_head_argmax", s.vocab)):
        tile = tiles.rows(name, rows, h)
        yield _spec(
            f"{name}.rows",
            operation,
            "rmsnorm_qkv.kernel:scaled_linear_rows",
            (z, squares, _bf16("weight", rows, h), _f32("out", ROWS, rows)),
            {"EPS": s.eps, "T": ROWS, "PARTS": parts, **tile.constants(h)},
            (rows // tile.rows,),
            tile,
        )
    tile = tiles.rows("gate_up", s.intermediate, h)
    yield _spec(
        "gate_up.rows",
        "rmsnorm_gate_up_silu",
        "rmsnorm_gate_up_silu.kernel:gate_up_silu_rows",
        (z, squares, _bf16("weight", 2 * s.intermediate, h), _bf16("out", ROWS, s.intermediate)),
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
            (_bf16("x", ROWS, width), _bf16("weight", h, width), wide, _bf16("norm", h), z, squares),
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
        yield _embedding_rows(s, p, rows, 16, tiles)
        z, wide, norm = _bf16("z", rows, h), _f32("wide", rows, h), _bf16("norm", h)
        squares = _squares(h, rows, _square_width(s, tiles, p))
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
        query = _bf16("query", rows, s.query_heads, HEAD_DIM)
        yield _spec(
            f"append.{p}",
            "attention",
            "attention.kernel:append_prompt",
            (
                _bf16("qkv", rows, s.heads, HEAD_DIM),
                *norms,
                _f32("rotary", s.length, HEAD_DIM),
                _i32("span", len(SPAN)),
                *cache,
                query,
            ),
            {**_attention_constants(s), "HEADS": s.group, "T": 4},
            (s.kv_heads, rows // 4),
        )
        tile = tiles.prompt_attention(rows)
        yield _spec(
            f"attention.{p}",
            "attention",
            "attention.kernel:attend_prompt",
            (query, _i32("span", len(SPAN)), *cache, _bf16("out", rows, s.query_heads, HEAD_DIM)),
            {"HQ": s.query_heads, "HKV": s.kv_heads, "T": tile.t, "KEYS": KEYS},
            (rows // tile.t, s.query_heads),
            tile,
        )


def _choices(s: Sizes) -> Iterator[KernelSpec]:
    parts, padded = s.vocab_parts, _power_of_two(s.vocab_parts)
    logits, best = _f32("logits", ROWS, s.vocab), _f32("best", ROWS, parts)
    where, banned = _i32("where", ROWS, parts), _i32("banned", SLOTS, BANNED)
    drawn, until = _i32("drawn", SLOTS), _i32("until", SLOTS)
    state = (_i32("tokens", SLOTS), _i32("positions", SLOTS), drawn, _i32("chosen", SLOTS))
    for name, rows, slots, advance in (
        ("rows", ROWS, _i32("slots", SLOTS), 1),
        ("prompt", 1, _i32("slots", len(SPAN)), 0),
    ):
        yield _spec(
            f"argmax.{name}",
            "rmsnorm_head_argmax",
            "rmsnorm_head_argmax.kernel:argmax_parts",
            (logits, slots, drawn, until, banned, best, where),
            {"WIDTH": VOCAB_PART, "BANNED": BANNED},
            (parts, rows),
        )
        yield _spec(
            f"greedy.{name}",
            "rmsnorm_head_argmax",
            "rmsnorm_head_argmax.kernel:argmax_choose",
            (best, where, slots, *state),
            {"PARTS": padded, "LENGTH": s.length, "ADVANCE": advance},
            (rows,),
        )
        yield _spec(
            f"sampled.{name}",
            "sampling",
            "sampling.kernel:sample",
            (
                logits,
                best,
                where,
                slots,
                _f32("temperature", SLOTS),
                _i32("top_k", SLOTS),
                _f32("top_p", SLOTS),
                _f32("uniform", SLOTS),
                until,
                banned,
                _i32("parts", 1),
                *state,
            ),
            {
                "VOCAB": s.vocab,
                "WIDTH": SAMPLE_PART,
                "PARTS": padded,
                "BANNED": BANNED,
                "LENGTH": s.length,
                "ADVANCE": advance,
            },
            (rows,),
        )


def _embedding_rows(s: Sizes, name: str, rows: int, t: int, tiles: Tiles) -> KernelSpec:
    h, width = s.hidden, _square_width(s, tiles, name)
    return _spec(
        f"embedding.{name}",
        "embedding",
        "embedding.kernel:embedding_rows",
        (
            _i32("tokens", rows),
            _bf16("table", s.vocab, h),
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
        _f32("parts", SLOTS, s.query_heads, splits, HEAD_DIM),
        _f32("tops", SLOTS, s.query_heads, splits, 1),
        _f32("sums", SLOTS, s.query_heads, splits, 1),
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


def _squares(hidden: int, rows: int, width: int) -> Array:
    """Sums of squares of `rows` rows, one for each block of `width` columns."""
    return _f32("squares", hidden // width, rows)


def _array(name: str, dtype: DType, shape: tuple[int, ...]) -> Array:
    return Array(name=name, dtype=dtype, shape=shape)


def _bf16(name: str, *shape: int) -> Array:
    return _array(name, "bf16", shape)


def _f32(name: str, *shape: int) -> Array:
    return _array(name, "f32", shape)


def _i32(name: str, *shape: int) -> Array:
    return _array(name, "i32", shape)


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
