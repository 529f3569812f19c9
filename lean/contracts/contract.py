"""A contract: one model, one encoding, one chip, and the rules under which its numbers count."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from lean.contracts.loader import to_data
from lean.contracts.model import Geometry, Model
from lean.errors import ContractError

Encoding = Literal["bf16", "fp8-e4m3", "int4-codebook", "nvfp4"]
Target = Literal["sm_121", "sm_90", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetFacts:
    """What the chip offers: the data sheet's bandwidth in GB/s (1e9), cache and shared memory as reported."""

    name: str
    memory_bandwidth_gbs: float | None = None
    l2_mib: float | None = None
    shared_memory_per_block_kib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """An exact shape the appliance is built for: tokens in, tokens out, and the batch sizes measured."""

    prompt: int
    generate: int
    batch: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.prompt < 1 or self.generate < 1:
            raise ValueError(f"prompt: expected positive token counts, got {self.prompt} and {self.generate}")
        if not self.batch or any(size not in (1, 2, 4, 8) for size in self.batch):
            raise ValueError(f"batch: expected sizes out of 1, 2, 4, 8, got {list(self.batch)}")

    @property
    def length(self) -> int:
        """Key-value positions one sequence of this bucket needs."""
        return self.prompt + self.generate


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePolicy:
    """How official runs decode."""

    greedy: bool
    ignore_eos: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRules:
    """What a speed claim must beat: `ratio` times the best of `best_of` runs of `peer` on `profile`."""

    peer: str
    profile: str
    ratio: float
    best_of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """One model-chip pair. `official: true` is one of several conditions for the label `fixed-contract`."""

    SCHEMA: ClassVar[str] = "contract/v1"

    id: str
    official: bool
    model: Model
    encoding: Encoding
    target: Target
    target_facts: TargetFacts
    buckets: tuple[Bucket, ...]
    decode: DecodePolicy
    baseline: BaselineRules | None = None

    def __post_init__(self) -> None:
        if not self.buckets:
            raise ValueError("buckets: expected at least one")

    @property
    def max_length(self) -> int:
        """Key-value positions of the longest bucket."""
        return max(bucket.length for bucket in self.buckets)

    @property
    def max_batch(self) -> int:
        """The largest batch of any bucket."""
        return max(size for bucket in self.buckets for size in bucket.batch)

    def bucket(self, prompt: int, generate: int) -> Bucket | None:
        """The bucket of exactly this shape, if the contract has one."""
        return next((b for b in self.buckets if (b.prompt, b.generate) == (prompt, generate)), None)


def encoded_contract(contract: Contract, encoding: str | None) -> Contract:
    """The contract with its weights in another encoding: not official, and `<id>-<encoding>` by name.

    None, or the contract's own, is the contract itself. Errors: `ContractError` for an encoding that is not
    known, or a contract whose weights are no longer the checkpoint's.
    """
    if encoding is None or encoding == contract.encoding:
        return contract
    known = {name: name for name in get_args(Encoding)}
    if encoding not in known:
        raise ContractError(f"encoding: {encoding[:40]!r} is unknown; known: {', '.join(known)}")
    if contract.encoding != "bf16":
        raise ContractError(
            f"contract {contract.id}: {encoding} is made of bf16 weights, not of {contract.encoding}"
        )
    return replace(contract, id=f"{contract.id}-{encoding}", official=False, encoding=known[encoding])


def contract_sha256(contract: Contract) -> str:
    """Hash of the contract's canonical JSON; packs and results quote it."""
    text = json.dumps(to_data(contract), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelNeed:
    """One operation of the decode step. `shape`: [rows N, reduction K] of its weights, empty without any."""

    op: str
    shape: tuple[int, ...]
    per_step: int


def kernels_required(geometry: Geometry) -> tuple[KernelNeed, ...]:
    """The operations one decode step runs, derived from the geometry and never typed by hand."""
    g = geometry
    return (
        KernelNeed(op="embedding", shape=(g.vocab, g.hidden), per_step=1),
        KernelNeed(op="rmsnorm_qkv", shape=(g.qkv_rows, g.hidden), per_step=g.layers),
        KernelNeed(op="attention", shape=(), per_step=g.layers),
        KernelNeed(op="output_residual", shape=(g.hidden, g.attention_width), per_step=g.layers),
        KernelNeed(op="rmsnorm_gate_up_silu", shape=(2 * g.intermediate, g.hidden), per_step=g.layers),
        KernelNeed(op="down_residual", shape=(g.hidden, g.intermediate), per_step=g.layers),
        KernelNeed(op="rmsnorm_head_argmax", shape=(g.vocab, g.hidden), per_step=1),
    )
