"""What a model is, as far as a contract fixes it, and the check against the checkpoint's own config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lean.errors import ContractError


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Sizes of a decoder-only transformer. In Qwen3 `query_heads * head_dim` differs from `hidden`."""

    layers: int
    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.query_heads % self.kv_heads:
            raise ValueError(f"kv_heads: {self.kv_heads} does not divide query_heads {self.query_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim: rotary embedding needs an even number, got {self.head_dim}")

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.query_heads + 2 * self.kv_heads) * self.head_dim

    @property
    def attention_width(self) -> int:
        """Width of the attention output, the K of the output projection."""
        return self.query_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        """Matrix parameters of one layer, norms left out: what a decode step must read per layer."""
        return self.hidden * (self.qkv_rows + self.attention_width + 3 * self.intermediate)

    @property
    def kv_values_per_token(self) -> int:
        """Numbers the key-value cache holds per token: 2 · layers · kv heads · head dim."""
        return 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checkpoint: `id` is the hub's name, `revision` a pinned commit or none for a local one."""

    id: str
    family: Literal["qwen3"]
    revision: str | None = None
    geometry: Geometry
    rms_norm_eps: float
    rope_theta: float
    tied_head: bool

    @property
    def parameters(self) -> int:
        """All of them, a tied head counted once (Qwen3-4B: 4,022,468,096)."""
        embedding = 0 if self.tied_head else self.geometry.vocab * self.geometry.hidden
        return self.decode_parameters + embedding

    @property
    def decode_parameters(self) -> int:
        """What a decode step reads: all layers with their four norms, the final norm, and the head.

        One embedding row per stream is left out; with a tied head it lies in the head's own bytes.
        """
        g = self.geometry
        norms = 2 * g.hidden + 2 * g.head_dim
        return g.layers * (g.layer_parameters + norms) + g.hidden + g.vocab * g.hidden


def model_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The contract's view of a Hugging Face config.json; values it does not state are absent."""
    rope = config.get("rope_parameters") or {}
    facts = {
        "family": config.get("model_type"),
        "geometry.layers": config.get("num_hidden_layers"),
        "geometry.hidden": config.get("hidden_size"),
        "geometry.intermediate": config.get("intermediate_size"),
        "geometry.query_heads": config.get("num_attention_heads"),
        "geometry.kv_heads": config.get("num_key_value_heads"),
        "geometry.head_dim": config.get("head_dim"),
        "geometry.vocab": config.get("vocab_size"),
        "rms_norm_eps": config.get("rms_norm_eps"),
        "rope_theta": config.get("rope_theta", rope.get("rope_theta")),
        "tied_head": config.get("tie_word_embeddings"),
    }
    return {name: value for name, value in facts.items() if value is not None}


def geometry_mismatches(model: Model, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Every field in which the checkpoint's config.json disagrees with the contract, naming both values."""
    found = model_facts(config)
    expected: dict[str, Any] = {
        "family": model.family,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_theta,
        "tied_head": model.tied_head,
    }
    expected |= {f"geometry.{name}": getattr(model.geometry, name) for name in Geometry.__dataclass_fields__}
    return tuple(
        f"{name}: contract says {value}, checkpoint says {found.get(name, 'nothing')}"
        for name, value in expected.items()
        if found.get(name) != value
    )


def check_geometry(model: Model, config: Mapping[str, Any], origin: str) -> None:
    """Raise `ContractError` unless the checkpoint's config.json agrees with the contract in every field."""
    wrong = geometry_mismatches(model, config)
    if wrong:
        raise ContractError(f"{origin}: not the contract's model {model.id}: " + "; ".join(wrong))
