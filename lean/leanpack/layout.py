"""Which tensors a pack holds, in which files and in which order, derived from the contract alone.

Row order of the fused tensors, as the kernels read them: qkv is query rows, then key rows, then value rows;
gate_up is gate rows, then up rows. Matrices are [rows N, reduction K], row-major, as in the checkpoint.

In another encoding than bf16 the layers' matrices and the head are each stored as two or three tensors, see
`kernels.encodings`: the codes under the matrix's own name, then `.scale`, then `.table`. Norms and the
embedding, of which a step reads a row, stay bf16; so the head of a tied model is a tensor of its own then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lean.contracts import Encoding, Geometry, Model
from lean.errors import ContractError

ALIGNMENT = 4096  # bytes; a page, so that a tensor can be mapped and copied to a device as it lies
EMBEDDING = "embedding"
HEAD = "head"
ENCODED_ROLES = ("attention.qkv", "attention.output", "mlp.gate_up", "mlp.down", HEAD)

StoredDType = Literal["BF16", "F8_E4M3", "U32", "F32"]
_STORED: dict[str, StoredDType] = {"bf16": "BF16", "e4m3": "F8_E4M3", "u32": "U32", "f32": "F32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor:
    """One tensor of the pack: the concatenation of `sources` along the first dimension, or what encodes it.

    `part`: codes, scale or table of `matrix`, whose rows in bf16 it is made from.
    """

    name: str
    role: str
    file: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    source_shapes: tuple[tuple[int, ...], ...]
    dtype: StoredDType = "BF16"
    encoding: Encoding = "bf16"
    part: str | None = None
    matrix: PlannedTensor | None = None


def plan_tensors(model: Model, encoding: Encoding = "bf16") -> tuple[PlannedTensor, ...]:
    """Every tensor of a Qwen3 pack in file order. A tied bf16 head is an alias instead (`plan_aliases`).

    Errors: `ContractError` for a geometry that the encoding cannot have.
    """
    g = model.geometry
    embedding = _tensor(
        EMBEDDING, "", "weights/embedding.safetensors", [("model.embed_tokens", (g.vocab, g.hidden))]
    )
    planned = [embedding]
    for layer in range(g.layers):
        planned += _layer(g, layer)
    output = "weights/output.safetensors"
    planned.append(_tensor("final_norm", "", output, [("model.norm", (g.hidden,))]))
    if not model.tied_head:
        planned.append(_tensor(HEAD, "", output, [("lm_head", (g.vocab, g.hidden))]))
    elif encoding != "bf16":
        planned.append(replace(embedding, name=HEAD, role=HEAD, file=output, matrix=embedding))
    if encoding == "bf16":
        return tuple(planned)
    return tuple(
        part
        for tensor in planned
        for part in (_parts(tensor, encoding) if tensor.role in ENCODED_ROLES else [tensor])
    )


def plan_aliases(model: Model, encoding: Encoding = "bf16") -> dict[str, str]:
    """Names that stand for another tensor: a tied bf16 head is the embedding, stored once."""
    return {HEAD: EMBEDDING} if model.tied_head and encoding == "bf16" else {}


def _parts(tensor: PlannedTensor, encoding: Encoding) -> list[PlannedTensor]:
    """What is stored for a matrix."""
    from kernels.encodings import encoded  # a bf16 pack is opened without `kernels`

    rows, width = tensor.shape
    try:
        arrays = encoded(encoding, rows, width)
    except ValueError as error:
        raise ContractError(f"encoding: {encoding}: {tensor.name}: {error}") from None
    return [
        replace(
            tensor,
            name=tensor.name + suffix,
            role=tensor.role + suffix,
            shape=array.shape,
            dtype=_STORED[array.dtype],
            encoding=encoding,
            part=array.name,
            matrix=tensor.matrix or tensor,
        )
        for array in arrays
        for suffix in ["" if array.name == "codes" else f".{array.name}"]
    ]


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
