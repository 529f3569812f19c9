"""Qwen3, top-down, from the references of its operations (source: "Qwen3 Technical Report", 2025).

Letters in shapes: T rows of a step, H hidden, I intermediate, Hq query heads, Hkv key-value heads, D head
dimension, N positions held, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.attention.reference import attend, norm_rotate, rotary_rows, rotary_table
from kernels.down_residual.reference import down_residual
from kernels.embedding.reference import embedding
from kernels.encodings import FOUR_BIT
from kernels.encodings.reference import decode
from kernels.output_residual.reference import output_residual
from kernels.output_split.reference import output_split
from kernels.rmsnorm_gate_up_silu.reference import rmsnorm_gate_up_silu
from kernels.rmsnorm_head_argmax.reference import rmsnorm_head_argmax
from kernels.rmsnorm_qkv.reference import rmsnorm_qkv
from lean.contracts import Encoding, Geometry
from lean.leanpack import Pack
from lean.leanserve.kv_cache import KVCache
from lean.leanserve.plan import padded_length

DECODED_BLOCK = 1 << 18  # weights decoded at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer's weights; matrices are [rows N, reduction K].

    They are in the pack's own type and memory, or in FP32 where the pack has them encoded.
    """

    attention_norm: Tensor  # [H]
    qkv: Tensor  # [(Hq + 2 Hkv) · D, H]: query rows, key rows, value rows
    head_norm: Tensor  # [Hq + Hkv, D]: the query norm Hq times, the key norm Hkv times
    output: Tensor  # [H, Hq · D]
    mlp_norm: Tensor  # [H]
    gate_up: Tensor  # [2 I, H]: gate rows, up rows
    down: Tensor  # [H, I]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Rows start .. stop - 1 of a step: one stream's positions from `first` on.

    The cache has the first `held` of them already; they fill up the tile and are not written again.
    """

    slot: int
    first: int
    start: int
    stop: int
    held: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3:
    """The whole model. A tied bf16 `head` is the embedding; `rotary` [N, D] is computed, not stored."""

    geometry: Geometry
    eps: float
    embedding: Tensor  # [V, H]
    layers: tuple[Layer, ...]
    final_norm: Tensor  # [H]
    head: Tensor  # [V, H]
    rotary: Tensor

    def step(
        self,
        tokens: Tensor,
        positions: Tensor,
        spans: Sequence[Span],
        cache: KVCache,
        *,
        split_k: int | None = None,
        mark: Callable[[str], None] | None = None,
    ) -> Tensor:
        """Tokens [T] at positions [T] -> hidden states [T, H] before the final norm.

        The spans' rows enter the cache; a row in no span attends to nothing and touches no cache. Everything
        but attention is row by row. `split_k`: parts of each head's share of the output projection. `mark` is
        called at the end of each region (`lean.leanserve.region_times`).
        """
        cos, sin = rotary_rows(self.rotary, positions)  # each [T, 1, D]
        x: Tensor = embedding(tokens, self.embedding, cache.dtype)  # [T, H]
        if mark:
            mark("embedding")
        for index, layer in enumerate(self.layers):
            qkv = rmsnorm_qkv(x, layer.attention_norm, layer.qkv, self.eps)  # [T, (Hq + 2 Hkv) · D]
            if mark:
                mark("qkv")
            query, keys, values = self._heads(qkv, layer.head_norm, cos, sin)
            mixed = _attention(index, query, keys, values, spans, cache)  # [T, Hq · D]
            if mark:
                mark("attention")
            x = self._output(mixed, layer, x, split_k)  # [T, H]
            if mark:
                mark("output")
            activated = rmsnorm_gate_up_silu(x, layer.mlp_norm, layer.gate_up, self.eps)  # [T, I]
            if mark:
                mark("gate_up")
            x = down_residual(activated, layer.down, x)  # [T, H]
            if mark:
                mark("down")
        return x

    def predict(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [T, H] -> logits [T, V] in FP32 and each row's greedy token [T]."""
        logits, greedy = rmsnorm_head_argmax(hidden, self.final_norm, self.head, self.eps)
        return logits, greedy

    def _output(self, mixed: Tensor, layer: Layer, x: Tensor, split_k: int | None) -> Tensor:
        if split_k is None:
            whole: Tensor = output_residual(mixed, layer.output, x)
            return whole
        heads = self.geometry.query_heads
        split: Tensor = output_split(mixed, layer.output, x, heads=heads, splits=split_k)
        return split

    def _heads(self, qkv: Tensor, norm: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query [T, Hq, D] and keys [T, Hkv, D], normed and turned, and values [T, Hkv, D]."""
        g = self.geometry
        heads = qkv.view(-1, g.query_heads + 2 * g.kv_heads, g.head_dim)
        values = heads[:, g.query_heads + g.kv_heads :]
        turned = norm_rotate(heads[:, : g.query_heads + g.kv_heads], norm, cos, sin, self.eps)
        return turned[:, : g.query_heads], turned[:, g.query_heads :], values


def _attention(
    layer: int, query: Tensor, keys: Tensor, values: Tensor, spans: Sequence[Span], cache: KVCache
) -> Tensor:
    """Append each span's new rows to its slot, then attend over that slot alone: [T, Hq · D]."""
    mixed = torch.zeros(
        query.shape[0], query.shape[1] * query.shape[2], dtype=query.dtype, device=query.device
    )
    for span in spans:
        new = slice(span.start + span.held, span.stop)
        cache.append(span.slot, layer, span.first + span.held, keys[new], values[new])
        held_keys, held_values = cache.read(span.slot, layer, span.first + span.stop - span.start)
        mixed[span.start : span.stop] = attend(query[span.start : span.stop], held_keys, held_values)
    return mixed


def load_qwen3(pack: Pack, device: torch.device) -> Qwen3:
    """The pack's model: on the CPU its tensors are views of the pack's mapping, elsewhere copied once.

    Encoded matrices are decoded once, to FP32: four bytes a weight, whatever they take in the pack.
    """
    contract = pack.manifest.contract
    model, g = contract.model, contract.model.geometry
    table = rotary_table(g.head_dim, model.rope_theta, padded_length(contract.max_length))

    def tensor(name: str) -> Tensor:
        return _as_torch(pack.tensor(name)).to(device)

    def matrix(name: str) -> Tensor:
        return tensor(name) if contract.encoding == "bf16" else _decoded(contract.encoding, name, tensor)

    def layer(index: int) -> Layer:
        own = f"layers.{index}."
        query_norm = tensor(own + "attention.query_norm").expand(g.query_heads, -1)
        key_norm = tensor(own + "attention.key_norm").expand(g.kv_heads, -1)
        return Layer(
            attention_norm=tensor(own + "attention_norm"),
            qkv=matrix(own + "attention.qkv"),
            head_norm=torch.cat((query_norm, key_norm)),
            output=matrix(own + "attention.output"),
            mlp_norm=tensor(own + "mlp_norm"),
            gate_up=matrix(own + "mlp.gate_up"),
            down=matrix(own + "mlp.down"),
        )

    return Qwen3(
        geometry=g,
        eps=model.rms_norm_eps,
        embedding=tensor("embedding"),
        layers=tuple(layer(index) for index in range(g.layers)),
        final_norm=tensor("final_norm"),
        head=matrix("head"),
        rotary=table.to(device),
    )


def _decoded(encoding: Encoding, name: str, tensor: Callable[[str], Tensor]) -> Tensor:
    """An encoded matrix in FP32, a block of rows at a time: decoding needs some 40 bytes a weight."""
    parts = [tensor(name), tensor(f"{name}.scale")]
    parts += [tensor(f"{name}.table")] if encoding in FOUR_BIT else []
    codes = parts[0]
    rows, width = codes.shape[0], codes.shape[1] * (8 if encoding in FOUR_BIT else 1)
    matrix = torch.empty(rows, width, device=codes.device)
    step = max(1, DECODED_BLOCK // width)
    for start in range(0, rows, step):
        matrix[start : start + step] = decode(encoding, *(part[start : start + step] for part in parts))
    return matrix


def _as_torch(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():  # torch has no read-only tensors and says so; nothing here writes weights
        warnings.simplefilter("ignore", UserWarning)
        if array.dtype == np.uint16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype == np.uint8:
            return torch.from_numpy(array).view(torch.float8_e4m3fn)
        return torch.from_numpy(array)
