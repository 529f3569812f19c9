"""Which packs a directory holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lean.errors import PackError
from lean.leanpack.lock import LOCK_NAME
from lean.leanpack.read import read_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPack:
    """One pack by its manifest. `bytes` is the size of its files."""

    path: str
    lock: str
    contract: str
    weights: str
    targets: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PackList:
    """`packs` oldest first; `damaged` says what is wrong with those that cannot be read."""

    packs: tuple[ListedPack, ...]
    damaged: tuple[str, ...]


def list_packs(packs: Path, contract: str | None = None) -> PackList:
    """The packs below `packs`, of one contract or of all. Nothing is hashed: opening a pack does that."""
    found, damaged = [], []
    for lock in sorted(packs.glob(f"*/{LOCK_NAME}"), key=lambda path: (path.stat().st_mtime_ns, path)):
        if lock.parent.name.startswith("."):
            continue  # a build under way
        try:
            listed = _listed(lock.parent)
        except PackError as error:
            damaged.append(str(error))
        else:
            found += [listed] if contract in (None, listed.contract) else []
    return PackList(packs=tuple(found), damaged=tuple(damaged))


def _listed(folder: Path) -> ListedPack:
    manifest, lock = read_manifest(folder)
    return ListedPack(
        path=str(folder),
        lock=lock,
        contract=manifest.contract.id,
        weights=manifest.weights,
        targets=tuple(target.name for target in manifest.targets),
        bytes=sum(file.size for file in manifest.files),
    )
