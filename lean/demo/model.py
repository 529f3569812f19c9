"""Qwen3's forward pass in plain PyTorch, small enough to read at one sitting, used to train the demo.

Parameter names are Hugging Face's, so `state_dict()` is the checkpoint. Architecture: Qwen3 technical report
(arXiv 2505.09388) and transformers' `modeling_qwen3.py`: pre-norm blocks, grouped-query attention with
RMSNorm on each query and key head, rotary positions in the half-split layout, SwiGLU, tied output head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The model's shape. `head_dim` is free of hidden / heads, as in Qwen3."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    head_dim: int = 128
    vocab: int = 4096
    max_positions: int = 2048
    eps: float = 1e-6
    rope_theta: float = 1e6


MAIN = Geometry(hidden=256, layers=4, heads=4, kv_heads=2, intermediate=768)
DRAFT = Geometry(hidden=128, layers=3, heads=2, kv_heads=1, intermediate=384)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).type_as(x)


def rotary_table(geometry: Geometry, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles, each [S, D]."""
    exponents = torch.arange(0, geometry.head_dim, 2, device=device).float() / geometry.head_dim
    angles = torch.outer(torch.arange(length, device=device).float(), geometry.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + D/2) of each head, x [B, H, S, D]."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).type_as(x)


@dataclass(slots=True)
class LayerCache:
    """Keys and values of the tokens seen so far in one layer, [B, KV, S, D]; grows by concatenation."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys = keys if self.keys is None else torch.cat((self.keys, keys), dim=2)
        self.values = values if self.values is None else torch.cat((self.values, values), dim=2)
        return self.keys, self.values


class Attention(nn.Module):
    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.head_dim = g.head_dim
        self.q_proj = nn.Linear(g.hidden, g.heads * g.head_dim, bias=False)
        self.k_proj = nn.Linear(g.hidden, g.kv_heads * g.head_dim, bias=False)
        self.v_proj = nn.Linear(g.hidden, g.kv_heads * g.head_dim, bias=False)
        self.o_proj = nn.Linear(g.heads * g.head_dim, g.hidden, bias=False)
        self.q_norm = RMSNorm(g.head_dim, g.eps)
        self.k_norm = RMSNorm(g.head_dim, g.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None) -> Tensor:
        batch, length, _ = x.shape
        heads = (batch, length, -1, self.head_dim)
        query = rotate(self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2), cos, sin)  # [B, H, S, D]
        key = rotate(self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2), cos, sin)  # [B, KV, S, D]
        value = self.v_proj(x).view(heads).transpose(1, 2)  # [B, KV, S, D]
        if cache is not None:
            key, value = cache.extend(key, value)
        mixed = F.scaled_dot_product_attention(
            query, key, value.type_as(query), is_causal=length > 1, enable_gqa=True
        )
        projected: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return projected


class MLP(nn.Module):
    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(g.hidden, g.intermediate, bias=False)
        self.up_proj = nn.Linear(g.hidden, g.intermediate, bias=False)
        self.down_proj = nn.Linear(g.intermediate, g.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return projected


class Block(nn.Module):
    def __init__(self, g: Geometry, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(g.hidden, g.eps)
        self.self_attn = Attention(g)
        self.post_attention_layernorm = RMSNorm(g.hidden, g.eps)
        self.mlp = MLP(g)
        self.dropout = dropout

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), cos, sin, cache)
        x = x + F.dropout(attended, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), self.dropout, self.training)


class Backbone(nn.Module):
    def __init__(self, g: Geometry, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(g.vocab, g.hidden)
        self.layers = nn.ModuleList(Block(g, dropout) for _ in range(g.layers))
        self.norm = RMSNorm(g.hidden, g.eps)


class Qwen3(nn.Module):
    """Token ids [B, S] to logits [B, S, V]; the head is the embedding, transposed."""

    def __init__(self, geometry: Geometry, dropout: float = 0.0) -> None:
        super().__init__()
        self.geometry = geometry
        self.dropout = dropout
        self.model = Backbone(geometry, dropout)

    def init_weights(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02); what writes into the residual stream is scaled down by its depth, as in GPT-2."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / (2 * self.geometry.layers) ** 0.5 if residual else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, ids: Tensor, start: int = 0, caches: list[LayerCache] | None = None) -> Tensor:
        """`start` is the position of the first id; above 0 the caches hold what came before, and S is 1."""
        embedding = self.model.embed_tokens
        cos, sin = rotary_table(self.geometry, start + ids.shape[1], ids.device)
        x = F.dropout(embedding(ids), self.dropout, self.training)  # [B, S, hidden]
        for index, layer in enumerate(self.model.layers):
            x = layer(x, cos[start:], sin[start:], caches[index] if caches else None)
        return F.linear(self.model.norm(x), embedding.weight)


@torch.inference_mode()
def generate(
    model: Qwen3,
    prompts: Tensor,
    new_tokens: int,
    temperature: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue `prompts` [B, S] by `new_tokens` each; greedy at temperature 0."""
    caches = [LayerCache() for _ in range(model.geometry.layers)]
    chosen: list[Tensor] = []
    ids, start = prompts, 0
    for _ in range(new_tokens):
        logits = model(ids, start, caches)[:, -1].float()  # [B, V]
        start += ids.shape[1]
        if temperature == 0.0:
            ids = logits.argmax(-1, keepdim=True)
        else:
            ids = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        chosen.append(ids)
    return torch.cat(chosen, dim=1)
