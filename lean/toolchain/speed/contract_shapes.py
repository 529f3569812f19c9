"""What a contract says of shapes, as it travels with compiled kernels: who runs them needs no YAML then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernels.qwen3 import Sizes
from lean.errors import IntegrityError, UsageError
from lean.toolchain.sources import ROOT, sha256_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractShapes:
    """The shapes of a contract. `file`, `sha256`: the profile they were read from.

    `position`: a decode step's, half-way through the contract's first bucket.
    """

    id: str
    file: str
    sha256: str
    target: str
    encoding: str
    sizes: Sizes
    rope_theta: float
    position: int


def encoded_name(contract: str, encoding: str | None) -> str:
    """The id of a bf16 contract in an encoding, as `lean.contracts.encoded_contract` names it."""
    return contract if encoding in (None, "bf16") else f"{contract}-{encoding}"


def read_shapes(contract: str, encoding: str | None = None) -> ContractShapes:
    """The shapes of a contract of profiles/contracts, in its own encoding or another.

    Errors: `ContractError`.
    """
    from lean.contracts import encoded_contract, load_contract
    from lean.kernel_sizes import sizes_of

    base = load_contract(contract)
    found = encoded_contract(base, encoding)
    first = found.buckets[0]
    file = f"profiles/contracts/{base.id}.yaml"
    return ContractShapes(
        id=found.id,
        file=file,
        sha256=_sha256(file),
        target=found.target,
        encoding=found.encoding,
        sizes=sizes_of(found),
        rope_theta=found.model.rope_theta,
        position=first.prompt + first.generate // 2,
    )


def shapes_document(shapes: ContractShapes) -> dict[str, Any]:
    """As JSON."""
    return asdict(shapes)


def shapes_from(document: dict[str, Any]) -> ContractShapes:
    """From JSON, for this checkout's profile of that name.

    Errors: `ValueError`, `TypeError` for a document of another form; `IntegrityError` when the profile here
    is another one.
    """
    shapes = ContractShapes(**{**document, "sizes": Sizes(**document["sizes"])})
    if not shapes.file.startswith("profiles/contracts/") or ".." in shapes.file:
        raise ValueError(f"file: {shapes.file!r}")
    if not (ROOT / shapes.file).is_file() or _sha256(shapes.file) != shapes.sha256:
        raise IntegrityError(f"compiled for another {shapes.file}; compile from this checkout")
    return shapes


def shapes_of(file: Path, index: Mapping[str, Any], contract: str) -> ContractShapes:
    """The contract that a folder's `index`, read from `file`, says it was compiled for.

    Errors: `UsageError` when it is another one, or none; `IntegrityError` when the profile here is another.
    """
    try:
        shapes = shapes_from(index["contract"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--kernels: {file}: contract: {error}") from None
    if shapes.id != contract:
        raise UsageError(f"--kernels: {file.parent} is for contract {shapes.id}, not {contract}")
    return shapes


def _sha256(file: str) -> str:
    return sha256_of((ROOT / file).read_bytes())
