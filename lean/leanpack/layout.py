"""Which tensors a pack holds, in which files and in which order, derived from the contract alone.

Row order of the fused tensors, as the kernels read them: qkv is query rows, then key rows, then value rows;
gate_up is gate rows, then up rows. Matrices are [rows N, reduction K], row-major, as in the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from lean.contracts import Geometry, Model

ALIGNMENT = 4096  # bytes; a page, so that a tensor can be mapped and copied to a device as it lies
EMBEDDING = "embedding"
HEAD = "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor:
    """One tensor of the pack: the concatenation of `sources` along the first dimension."""

    name: str
    role: str
    file: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    source_shapes: tuple[tuple[int, ...], ...]


def plan_tensors(model: Model) -> tuple[PlannedTensor, ...]:
    """Every tensor of a Qwen3 pack in file order. A tied head is no tensor but an alias (`plan_aliases`)."""
    g = model.geometry
    planned = [
        _tensor(
            "embedding", "", "weights/embedding.safetensors", [("model.embed_tokens", (g.vocab, g.hidden))]
        )
    ]
    for layer in range(g.layers):
        planned += _layer(g, layer)
    output = "weights/output.safetensors"
    planned.append(_tensor("final_norm", "", output, [("model.norm", (g.hidden,))]))
    if not model.tied_head:
        planned.append(_tensor(HEAD, "", output, [("lm_head", (g.vocab, g.hidden))]))
    return tuple(planned)


def plan_aliases(model: Model) -> dict[str, str]:
    """Names that stand for another tensor: the head of a tied model is its embedding, stored once."""
    return {HEAD: EMBEDDING} if model.tied_head else {}


def _layer(g: Geometry, layer: int) -> list[PlannedTensor]:
    query, key_value = g.query_heads * g.head_dim, g.kv_heads * g.head_dim
    parts: dict[str, list[tuple[str, tuple[int, ...]]]] = {
        "attention_norm": [("input_layernorm", (g.hidden,))],
        "attention.qkv": [
            ("self_attn.q_proj", (query, g.hidden)),
            ("self_attn.k_proj", (key_value, g.hidden)),
            ("self_attn.v_proj", (key_value, g.hidden)),
        ],
        "attention.query_norm": [("self_attn.q_norm", (g.head_dim,))],
        "attention.key_norm": [("self_attn.k_norm", (g.head_dim,))],
        "attention.output": [("self_attn.o_proj", (g.hidden, g.attention_width))],
        "mlp_norm": [("post_attention_layernorm", (g.hidden,))],
        "mlp.gate_up": [
            ("mlp.gate_proj", (g.intermediate, g.hidden)),
            ("mlp.up_proj", (g.intermediate, g.hidden)),
        ],
        "mlp.down": [("mlp.down_proj", (g.hidden, g.intermediate))],
    }
    file = f"weights/layer-{layer:03d}.safetensors"
    return [
        _tensor(
            role,
            f"layers.{layer}.",
            file,
            [(f"model.layers.{layer}.{name}", shape) for name, shape in sources],
        )
        for role, sources in parts.items()
    ]


def _tensor(role: str, prefix: str, file: str, sources: list[tuple[str, tuple[int, ...]]]) -> PlannedTensor:
    shapes = tuple(shape for _, shape in sources)
    return PlannedTensor(
        name=prefix + role,
        role=role,
        file=file,
        shape=(sum(shape[0] for shape in shapes), *shapes[0][1:]),
        sources=tuple(f"{name}.weight" for name, _ in sources),
        source_shapes=shapes,
    )
