"""The launches of a decode step, of a prompt and of first tokens, and the buffers they are bound to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kernels.encodings import FOUR_BIT
from kernels.qwen3.sizes import BANNED, GROUP_FIELDS, HEAD_DIM, PROMPT_GROUP, ROWS, SAMPLE_STEPS, SLOTS, Sizes
from kernels.spec import Array, Launch, bf16, f32, i32

ENCODED_WEIGHTS = ("attention.qkv", "attention.output", "mlp.gate_up", "mlp.down")


def work_buffers(sizes: Sizes, slots: int, split_k: int | None = None) -> tuple[Array, ...]:
    """Everything on the device that is no weight: streams' state, cache, activations.

    `split_k`: see `decode_program`.
    """
    s, most = sizes, max(sizes.prompt_rows)
    cache = tuple(
        Array(name=f"{kind}.{layer}", dtype="bf16", shape=(slots, s.kv_heads, s.length, HEAD_DIM))
        for layer in range(s.layers)
        for kind in ("keys", "values")
    )
    largest = max(2 * s.intermediate * s.hidden, s.heads * HEAD_DIM * s.hidden)
    widened = () if s.encoding == "bf16" else (bf16("widened", largest),)
    partials = (f32("partials", s.query_heads * split_k, ROWS, s.hidden),) if split_k else ()
    return (
        *(i32(name, SLOTS) for name in ("tokens", "positions", "drawn", "until", "rows", "top_k", "chosen")),
        *(f32(name, SLOTS) for name in ("temperature", "top_p", "uniform")),
        i32("banned", SLOTS, BANNED),
        i32("groups", most // PROMPT_GROUP, len(GROUP_FIELDS)),
        i32("last_rows", SLOTS),
        i32("last_slots", SLOTS),
        i32("prompt", most),
        f32("rotary", s.length, HEAD_DIM),
        *cache,
        f32("residual", most, s.hidden),
        f32("last_residual", ROWS, s.hidden),
        bf16("hidden", most, s.hidden),
        f32("squares", s.parts, most),
        *widened,
        *partials,
        f32("qkv", ROWS, s.heads, HEAD_DIM),
        bf16("prompt_qkv", most, s.heads, HEAD_DIM),
        bf16("query", most, s.query_heads, HEAD_DIM),
        bf16("mixed", most, s.query_heads, HEAD_DIM),
        bf16("activated", most, s.intermediate),
        f32("split_acc", SLOTS, s.query_heads, s.splits(1), HEAD_DIM),
        f32("split_m", SLOTS, s.query_heads, s.splits(1), 1),
        f32("split_l", SLOTS, s.query_heads, s.splits(1), 1),
        i32("arrived", SLOTS, s.query_heads),
        f32("logits", ROWS, s.vocab),
        f32("best", ROWS, s.vocab_parts),
        i32("where", ROWS, s.vocab_parts),
        *(i32(f"search.{i}", ROWS, 3) for i in range(2)),
        *(f32(f"goal.{i}", ROWS) for i in range(2)),
        *(f32(f"above.{i}", ROWS, s.vocab_parts, 16) for i in range(2)),
    )


def decode_program(
    sizes: Sizes, bucket: int, choose: str = "greedy", split_k: int | None = None
) -> tuple[Launch, ...]:
    """One step of `bucket` rows, slot i in row i; `choose` is greedy or sampled.

    `split_k`: parts that each head's share of the output projection is cut into, 1, 2, 4 or 8; None takes
    the projection whole. Errors: `ValueError` for parts where there are no kernels for them.
    """
    if split_k is not None and not sizes.can_split:
        raise ValueError(
            f"split_k: {sizes.encoding} weights, {sizes.query_heads} query heads; the output projection is "
            "split for bf16 and a power of two of heads"
        )
    one = bucket == 1
    if one and sizes.encoding == "bf16":
        launches = _one_row(sizes, split_k)
    else:
        launches = _rows(sizes, "one" if one else "rows", bucket, split_k)
    return (*launches, *_choose(sizes, "rows", "rows", bucket, choose))


def _one_row(sizes: Sizes, split_k: int | None) -> Iterator[Launch]:
    """Embedding to logits of one row of bf16 weights: a projection reads the stream, and norms it itself."""
    yield _launch("embedding.one", "tokens", "embedding", "residual", "hidden")
    for layer in range(sizes.layers):
        w = f"layers.{layer}."
        yield _launch("qkv.one", "hidden", w + "attention_norm", w + "attention.qkv", "qkv")
        yield _launch("attention.one", *_attention(layer))
        yield from _output("one", split_k, (w + "attention.output",), ("residual", "hidden"))
        yield _launch("gate_up.one", "hidden", w + "mlp_norm", w + "mlp.gate_up", "activated")
        yield _launch("down.one", "activated", w + "mlp.down", "residual", "hidden")
    yield _launch("head.one", "hidden", "final_norm", "head", "logits")


def _rows(sizes: Sizes, path: str, bucket: int, split_k: int | None) -> Iterator[Launch]:
    """Embedding to logits of several rows, or of one with encoded weights; producers leave `left` behind."""
    left = ("hidden", "squares")
    attend = "attention.one" if bucket == 1 else f"attention.rows{bucket}"
    yield _embed_rows(path, "tokens")
    for layer in range(sizes.layers):
        w = f"layers.{layer}."
        output, down = weight_names(sizes, w + "attention.output"), weight_names(sizes, w + "mlp.down")
        yield _launch(f"qkv.{path}", *left, *weight_names(sizes, w + "attention.qkv"), "qkv")
        yield _launch(attend, *_attention(layer))
        yield from _output(path, split_k, output, ("residual", w + "mlp_norm", *left))
        yield _launch(f"gate_up.{path}", *left, *weight_names(sizes, w + "mlp.gate_up"), "activated")
        yield _launch(f"down.{path}", "activated", *down, "residual", _next_norm(sizes, layer), *left)
    yield _launch(f"head.{path}", *left, *weight_names(sizes, "head"), "logits")


def _attention(layer: int) -> tuple[str, ...]:
    """What a step's attention is bound to, whatever its rows."""
    own = (f"layers.{layer}.attention.query_norm", f"layers.{layer}.attention.key_norm")
    cache = (f"keys.{layer}", f"values.{layer}")
    return (
        "qkv", *own, "rotary", "positions", *cache, "split_acc", "split_m", "split_l", "arrived", "mixed",
    )  # fmt: skip


def _output(
    path: str, split_k: int | None, weight: tuple[str, ...], out: tuple[str, ...]
) -> Iterator[Launch]:
    """The attention output projection, whole or in parts that are added up behind."""
    if split_k is None:
        yield _launch(f"output.{path}", "mixed", *weight, *out)
    else:
        yield _launch(f"split{split_k}.{path}", "mixed", *weight, "partials")
        yield _launch(f"sum{split_k}.{path}", "partials", *out)


def _next_norm(sizes: Sizes, layer: int) -> str:
    """The norm that the stream goes through behind a layer."""
    return "final_norm" if layer + 1 == sizes.layers else f"layers.{layer + 1}.attention_norm"


def weight_names(sizes: Sizes, name: str) -> tuple[str, ...]:
    """The tensors that a matrix is bound as: itself, or codes, scale and table; FP8 has no table."""
    if sizes.encoding == "bf16":
        return (name,)
    scale = f"{name}.scale"
    return name, scale, f"{name}.table" if sizes.encoding in FOUR_BIT else scale


def prompt_program(sizes: Sizes, rows: int) -> tuple[Launch, ...]:
    """The tokens of `prompt` into the slots that `groups` name, PROMPT_GROUP rows for each of them."""
    p, left = f"prompt{rows}", ("hidden", "squares")
    launches = [_embed_rows(p, "prompt")]
    for layer in range(sizes.layers):
        w = f"layers.{layer}."
        norms = (w + "attention.query_norm", w + "attention.key_norm")
        cache = (f"keys.{layer}", f"values.{layer}")
        layer_launches = [
            _launch(f"qkv.{p}", *left, w + "attention.qkv", "prompt_qkv"),
            _launch(f"append.{p}", "prompt_qkv", *norms, "rotary", "groups", *cache, "query"),
            _launch(f"attention.{p}", "query", "groups", *cache, "mixed"),
            _launch(f"output.{p}", "mixed", w + "attention.output", "residual", w + "mlp_norm", *left),
            _launch(f"gate_up.{p}", *left, w + "mlp.gate_up", "activated"),
            _launch(f"down.{p}", "activated", w + "mlp.down", "residual", _next_norm(sizes, layer), *left),
        ]
        launches += layer_launches if sizes.encoding == "bf16" else _widened(sizes, layer_launches)
    return tuple(launches)


def _widened(sizes: Sizes, launches: list[Launch]) -> Iterator[Launch]:
    """The launches with each encoded matrix widened into `widened` just before it is used."""
    for launch in launches:
        name = launch.kernel.split(".")[0]
        weight = next((b for b in launch.buffers if b.endswith(ENCODED_WEIGHTS)), None)
        if weight is not None:
            yield _launch(f"widen.{name}", *weight_names(sizes, weight), "widened")
            buffers = tuple("widened" if b == weight else b for b in launch.buffers)
            launch = replace(launch, buffers=buffers)
        yield launch


def predict_program(sizes: Sizes, count: int, choose: str = "greedy") -> tuple[Launch, ...]:
    """The first tokens behind `count` prompts, from the stream's `last_rows`, for the slots `last_slots`.

    All of `last_rows` are read, so those beyond `count` must be rows too.
    """
    return (
        _launch("last", "last_rows", "residual", "last_residual", "final_norm", "hidden", "squares"),
        _launch("head.rows", "hidden", "squares", *weight_names(sizes, "head"), "logits"),
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
            "search.rows", "logits", "best", slots, *settings, "drawn", *banned, *now, *then, grid=grid
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


def _embed_rows(name: str, tokens: str) -> Launch:
    norm = "layers.0.attention_norm"
    return _launch(f"embedding.{name}", tokens, "embedding", "residual", norm, "hidden", "squares")


def _launch(kernel: str, *buffers: str, grid: tuple[int, int, int] | None = None) -> Launch:
    return Launch(kernel=kernel, buffers=buffers, grid=grid)
