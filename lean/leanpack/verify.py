"""The long check of a pack: every file against LOCK, every header, every tensor's own hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lean.errors import PackError
from lean.leanpack.manifest import source_matches
from lean.leanpack.read import open_pack


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was checked. Sizes in bytes. `source_matches` is a fact that labels depend on, not a failure."""

    path: str
    lock: str
    contract: str
    weights: str
    source_matches: bool
    files: int
    tensors: int
    bytes: int


def verify_pack(path: Path) -> VerifyReport:
    """Check everything there is to check. Errors: `PackError` naming the file and the field."""
    pack = open_pack(path, verify=True)
    for record in pack.manifest.tensors:
        if hashlib.sha256(pack.tensor(record.name).data).hexdigest() != record.sha256:
            raise PackError(f"{pack.path}: tensor {record.name!r}: sha256: the manifest says otherwise")
    return VerifyReport(
        path=str(pack.path),
        lock=pack.lock,
        contract=pack.manifest.contract.id,
        weights=pack.manifest.weights,
        source_matches=source_matches(pack.manifest),
        files=len(pack.manifest.files) + 2,
        tensors=len(pack.manifest.tensors),
        bytes=sum(file.size for file in pack.manifest.files),
    )
