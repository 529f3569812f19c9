"""The same operations by torch, in bf16, each as its own kernels do it: what ours are measured beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention.reference import rotary_table
from kernels.qwen3 import HEAD_DIM, Sizes
from lean.toolchain.speed.operations import Operation, product_shape
from lean.toolchain.speed.rotation import copies_for

Work = Callable[[], Any]
WORDS = {
    "qkv": "linear(rms_norm(x))",
    "attention": "rms_norm of query and key, rotary, copy into the cache, scaled_dot_product_attention",
    "output": "residual + linear(x)",
    "gate_up": "both = linear(rms_norm(x)); silu(gate) * up",
    "down": "residual + linear(x)",
    "head_argmax": "linear(rms_norm(x)).argmax(-1)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Torch's work for one graph: `works` are so many operations, each on the next of `copies`."""

    works: tuple[Work, ...]
    copies: int
    bytes: int


def peer_of(
    operation: Operation, sizes: Sizes, theta: float, device: torch.device, least_bytes: int, seed: int
) -> Peer:
    """The operation by torch, on buffers of its own that rotate likewise."""
    random = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(shape, generator=random, device=device, dtype=torch.bfloat16)
        return drawn.mul_(scale)

    if operation.name == "attention":
        return _attention(operation, sizes, theta, draw, least_bytes)
    rows, reduction = product_shape(sizes, operation.name)
    copies, rounds = copies_for(2 * rows * reduction, least_bytes)
    first = draw(rows, reduction, scale=reduction**-0.5)
    weights = [first, *(first.clone() for _ in range(copies - 1))]
    x, gain = draw(operation.rows, reduction), draw(reduction)
    residual = draw(operation.rows, rows) if operation.name in ("output", "down") else x

    def work(weight: Tensor) -> Work:
        def normed() -> Tensor:
            return F.linear(F.rms_norm(x, (reduction,), gain, sizes.eps), weight)

        def gated() -> Tensor:
            gate, up = normed().chunk(2, dim=-1)
            return F.silu(gate) * up

        def added() -> Tensor:
            return residual + F.linear(x, weight)

        def chosen() -> Tensor:
            return normed().argmax(-1)

        kinds: dict[str, Work] = {"qkv": normed, "gate_up": gated, "head_argmax": chosen}
        return kinds.get(operation.name, added)

    works = tuple(work(weight) for weight in weights) * rounds
    return Peer(works=works, copies=copies, bytes=copies * 2 * rows * reduction)


def _attention(
    operation: Operation, sizes: Sizes, theta: float, draw: Callable[..., Tensor], least_bytes: int
) -> Peer:
    prompt = operation.path.startswith("prompt")
    batch, rows = (1, operation.rows) if prompt else (operation.rows, 1)
    first = 0 if prompt else operation.position
    seen = first + rows
    touched = 2 * batch * sizes.kv_heads * seen * HEAD_DIM * 2
    copies, rounds = copies_for(touched, least_bytes)
    qkv = draw(batch, rows, sizes.heads, HEAD_DIM)
    gains = draw(HEAD_DIM), draw(HEAD_DIM)
    shape = (batch, sizes.kv_heads, sizes.length, HEAD_DIM)
    keys, values = (draw(copies, *shape) for _ in range(2))
    table = rotary_table(HEAD_DIM, theta, sizes.length)[first:seen].to(qkv.device, torch.bfloat16)
    cos, sin = (torch.cat((half, half), dim=-1).unsqueeze(1) for half in table.chunk(2, dim=-1))
    counts: list[int] = [sizes.query_heads, sizes.kv_heads, sizes.kv_heads]

    def turned(heads: Tensor, gain: Tensor) -> Tensor:
        x = F.rms_norm(heads, (HEAD_DIM,), gain, sizes.eps)
        low, high = x.chunk(2, dim=-1)
        return (x * cos + torch.cat((-high, low), dim=-1) * sin).transpose(1, 2)

    def work(copy: int) -> Work:
        held_keys, held_values = keys[copy], values[copy]

        def attend() -> Tensor:
            query, key, value = torch.split(qkv, counts, dim=2)
            held_keys[:, :, first:seen].copy_(turned(key, gains[1]))
            held_values[:, :, first:seen].copy_(value.transpose(1, 2))
            return F.scaled_dot_product_attention(
                turned(query, gains[0]),
                held_keys[:, :, :seen],
                held_values[:, :, :seen],
                is_causal=prompt,
                enable_gqa=True,
            )

        return attend

    works = tuple(work(copy) for copy in range(copies)) * rounds
    return Peer(works=works, copies=copies, bytes=copies * touched)
