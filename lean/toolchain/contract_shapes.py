"""What a contract says of shapes, as it travels with compiled kernels: who runs them needs no YAML then."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from kernels.qwen3 import Sizes
from lean.errors import IntegrityError
from lean.toolchain.sources import ROOT


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


def read_shapes(contract: str) -> ContractShapes:
    """The shapes of a contract of profiles/contracts. Errors: `ContractError`."""
    from lean.contracts import load_contract
    from lean.kernel_sizes import sizes_of

    found = load_contract(contract)
    first = found.buckets[0]
    file = f"profiles/contracts/{found.id}.yaml"
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


def _sha256(file: str) -> str:
    return hashlib.sha256((ROOT / file).read_bytes()).hexdigest()
