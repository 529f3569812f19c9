"""The resident layout: what a service keeps in memory, computed before a byte of it is allocated.

Standard library only, so that a laptop can ask without torch or numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kernels.qwen3 import SPLITS, work_buffers
from lean.contracts import Contract, Geometry
from lean.errors import PreflightError, UsageError
from lean.host_facts import parse_meminfo
from lean.kernel_sizes import sizes_of
from lean.weight_bytes import decoded_bytes, model_bytes

ComputeDtype = Literal["float32", "bfloat16"]
RUNNERS = ("torch", "cuda")
BUCKETS = (1, 2, 4, 8)
PREFILL_TILE = 64  # rows
WIDENED_BLOCK_BYTES = 2 << 20  # weights the torch runner holds in FP32 at a time (kernels.linear.reference)
MEMINFO = Path("/proc/meminfo")  # also where memory is unified: nvidia-smi says Not Supported there
_VALUE_BYTES = {"float32": 4, "bfloat16": 2}
_FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPlan:
    """The key-value cache of one stream in a contract's bucket; `padded_length` in positions, whole tiles."""

    prompt: int
    generate: int
    padded_length: int
    kv_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsPlan:
    """The whole layout for one number of slots, in bytes."""

    slots: int
    kv_bytes: int
    scratch_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `slots` streams of up to `length` positions keep resident, in bytes.

    `kv_bytes` has the type `compute_dtype`; `scratch_bytes` is the rotary table and the largest step's
    activations. `by_slots` is the same for every number of slots. `split_k`: parts of each head's share of
    the output projection, None to take it whole.
    """

    contract: str
    compute_dtype: ComputeDtype
    split_k: int | None
    slots: int
    length: int
    padded_length: int
    weight_bytes: int
    kv_bytes: int
    scratch_bytes: int
    total_bytes: int
    buckets: tuple[BucketPlan, ...]
    by_slots: tuple[SlotsPlan, ...]


def resident_plan(
    contract: Contract,
    *,
    slots: int,
    runner: str = "torch",
    compute_dtype: ComputeDtype | None = None,
    weight_bytes: int | None = None,
    split_k: int | None = None,
) -> Plan:
    """The layout of a contract under a runner; with a pack at hand, `weight_bytes` is its manifest's.

    The torch runner keeps encoded matrices decoded, in FP32, whatever they take in the pack. `compute_dtype`
    is the target's own when left out: FP32 on a CPU, where it is the faster one, BF16 on a GPU. Errors:
    `UsageError` for a type, or parts of the output projection, that the runner does not have.
    """
    assert slots in BUCKETS and split_k in (None, *SPLITS)
    if split_k is not None:
        _check_split(contract, split_k, on_gpu=runner == "cuda")
    on_gpu = runner == "cuda"
    if on_gpu and compute_dtype == "float32":
        raise UsageError("--dtype float32: the cuda runner computes in bfloat16; leave --dtype out")
    dtype: ComputeDtype = compute_dtype or (
        "float32" if contract.target == "cpu" and not on_gpu else "bfloat16"
    )
    weights = model_bytes(contract.model, contract.encoding) if weight_bytes is None else weight_bytes
    if contract.encoding != "bf16" and not on_gpu:
        weights = decoded_bytes(contract.model)
    padded = padded_length(contract.max_length)
    geometry = contract.model.geometry
    rows = tuple(
        _cuda_plan(contract, count, weights, split_k)
        if on_gpu
        else _slots_plan(geometry, count, padded, dtype, weights)
        for count in BUCKETS
    )
    chosen = rows[BUCKETS.index(slots)]
    return Plan(
        contract=contract.id,
        compute_dtype=dtype,
        split_k=split_k,
        slots=slots,
        length=contract.max_length,
        padded_length=padded,
        weight_bytes=weights,
        kv_bytes=chosen.kv_bytes,
        scratch_bytes=chosen.scratch_bytes,
        total_bytes=chosen.total_bytes,
        buckets=tuple(
            BucketPlan(
                prompt=bucket.prompt,
                generate=bucket.generate,
                padded_length=padded_length(bucket.length),
                kv_bytes=kv_bytes(geometry, 1, padded_length(bucket.length), dtype),
            )
            for bucket in contract.buckets
        ),
        by_slots=rows,
    )


def _check_split(contract: Contract, split_k: int, *, on_gpu: bool) -> None:
    """Raise `UsageError` unless the output projection can be cut so."""
    if contract.encoding != "bf16":
        raise UsageError(f"--split-k {split_k}: only for bf16 weights, the pack's are {contract.encoding}")
    heads, head_dim = contract.model.geometry.query_heads, contract.model.geometry.head_dim
    if head_dim % split_k or (head_dim // split_k).bit_count() != 1:
        raise UsageError(f"--split-k {split_k}: a part of a head of {head_dim} must be a power of two")
    if on_gpu and not sizes_of(contract).can_split:
        raise UsageError(f"--split-k {split_k}: {heads} query heads; kernels are for a power of two")


def padded_length(length: int) -> int:
    """`length` rounded up to whole prefill tiles, the positions a slot has room for."""
    return -(-length // PREFILL_TILE) * PREFILL_TILE


def kv_bytes(geometry: Geometry, slots: int, padded: int, dtype: ComputeDtype) -> int:
    """2 · layers · kv heads · head dim · positions · bytes a value · slots."""
    return geometry.kv_values_per_token * padded * _VALUE_BYTES[dtype] * slots


def available_memory(meminfo: Path = MEMINFO) -> int:
    """Bytes that can be taken without swapping. Errors: `PreflightError` when the system does not say."""
    try:
        available = parse_meminfo(meminfo.read_text(encoding="ascii")).get("MemAvailable")
    except OSError as error:
        raise PreflightError(f"{meminfo}: cannot be read ({error.strerror}); serving needs Linux") from None
    if available is None:
        raise PreflightError(f"{meminfo}: no MemAvailable line; serving needs Linux 3.14 or later")
    return available


def require_memory(plan: Plan, available: int) -> None:
    """Refuse a layout that does not fit. Errors: `PreflightError` naming need, have and what would fit."""
    if plan.total_bytes <= available:
        return
    fitting = [row.slots for row in plan.by_slots if row.total_bytes <= available]
    fix = f"use --slots {max(fitting)}" if fitting else "free memory or choose a smaller model"
    raise PreflightError(
        f"{plan.contract} with {plan.slots} slot(s) needs {plan.total_bytes:,} bytes of memory, "
        f"{available:,} are available; {fix}"
    )


def _slots_plan(g: Geometry, slots: int, padded: int, dtype: ComputeDtype, weights: int) -> SlotsPlan:
    cache, scratch = kv_bytes(g, slots, padded, dtype), _scratch_bytes(g, slots, padded)
    total = weights + cache + scratch
    return SlotsPlan(slots=slots, kv_bytes=cache, scratch_bytes=scratch, total_bytes=total)


def _cuda_plan(contract: Contract, slots: int, weights: int, split_k: int | None) -> SlotsPlan:
    """The buffers that the cuda runner makes, by their own list."""
    buffers = work_buffers(sizes_of(contract), slots, split_k)
    cache = sum(buffer.nbytes for buffer in buffers if buffer.name.startswith(("keys.", "values.")))
    scratch = sum(buffer.nbytes for buffer in buffers) - cache
    return SlotsPlan(
        slots=slots, kv_bytes=cache, scratch_bytes=scratch, total_bytes=weights + cache + scratch
    )


def _scratch_bytes(g: Geometry, slots: int, padded: int) -> int:
    """Rotary table, and the FP32 buffers of a prefill tile or of a decode step, whichever is larger.

    Attention is sized by query heads · head dim, which Qwen3 does not tie to the hidden size.
    """
    row = 3 * g.hidden + g.qkv_rows + g.attention_width + 3 * g.intermediate
    prefill = PREFILL_TILE * (row + g.query_heads * padded)
    decode = slots * (row + g.query_heads * padded + g.vocab)
    return _FP32 * (padded * g.head_dim + max(prefill, decode)) + WIDENED_BLOCK_BYTES
