"""Between a contract, its kernels' specifications, and their records. Needs no compiler.

Whoever packs and whoever serves imports this; opening a pack does not.
"""

from __future__ import annotations

from kernels.qwen3 import HEAD_DIM, KEYS, Sizes
from kernels.spec import Array, KernelSpec
from lean.contracts import Contract
from lean.errors import ContractError
from lean.leanpack.kernel_record import KernelRecord


def sizes_of(contract: Contract) -> Sizes:
    """What the contract's kernels are compiled for: its longest bucket, padded to whole tiles of keys.

    Errors: `ContractError` for a geometry that the kernels do not have.
    """
    model, g = contract.model, contract.model.geometry
    if g.head_dim != HEAD_DIM:
        raise ContractError(
            f"contract {contract.id}: geometry.head_dim: the kernels have {HEAD_DIM}, not {g.head_dim}"
        )
    try:
        return Sizes(
            layers=g.layers,
            hidden=g.hidden,
            intermediate=g.intermediate,
            query_heads=g.query_heads,
            kv_heads=g.kv_heads,
            vocab=g.vocab,
            eps=model.rms_norm_eps,
            length=-(-contract.max_length // KEYS) * KEYS,
        )
    except ValueError as error:
        raise ContractError(f"contract {contract.id}: geometry.{error}, which the kernels need") from None


def specs_of(record: KernelRecord) -> KernelSpec:
    """The specification a record was compiled from: what is needed to launch its cubin."""
    x, y, z = record.grid
    return KernelSpec(
        name=record.name,
        operation=record.operation,
        function=record.function,
        arrays=tuple(Array(name=a.name, dtype=a.dtype, shape=a.shape) for a in record.arrays),
        constants=tuple((constant.name, constant.value) for constant in record.constants),
        grid=(x, y, z),
        occupancy=record.occupancy,
        warps=record.warps,
        spills=bool(record.spill_stores or record.spill_loads),
    )
