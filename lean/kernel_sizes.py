"""What a contract's kernels are compiled for. Needs neither a compiler nor numpy."""

from __future__ import annotations

from kernels.qwen3 import HEAD_DIM, KEYS, Sizes
from lean.contracts import Contract
from lean.errors import ContractError


def sizes_of(contract: Contract) -> Sizes:
    """What the contract's kernels are compiled for: its longest bucket, padded to whole tiles of keys.

    Errors: `ContractError` for a geometry that the kernels do not have.
    """
    model, g = contract.model, contract.model.geometry
    if g.head_dim != HEAD_DIM:
        raise ContractError(
            f"contract {contract.id}: geometry.head_dim: the kernels have {HEAD_DIM}, not {g.head_dim}"
        )
    if g.vocab % 64:
        raise ContractError(f"contract {contract.id}: geometry.vocab: {g.vocab} is no multiple of 64")
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
            encoding=contract.encoding,
        )
    except ValueError as error:
        raise ContractError(f"contract {contract.id}: geometry.{error}, which the kernels need") from None
