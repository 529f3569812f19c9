"""Which packs a folder holds, told by their manifests; nothing is hashed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lean.leanpack.read import read_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPack:
    """One pack. `modified` is the folder's time in seconds since 1970."""

    path: str
    contract: str
    lock: str
    weights: str
    modified: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PackList:
    """Packs of a folder, the newest last."""

    packs: tuple[ListedPack, ...]


def list_packs(packs: Path, contract: str | None = None) -> PackList:
    """Packs below `packs`, of one contract or of all. Errors: `PackError` for one that cannot be read."""
    found = []
    for folder in sorted(packs.glob("[!.]*")):
        if not folder.is_dir():
            continue
        manifest, lock = read_manifest(folder)
        if contract in (None, manifest.contract.id):
            found.append(
                ListedPack(
                    path=str(folder),
                    contract=manifest.contract.id,
                    lock=lock,
                    weights=manifest.weights,
                    modified=folder.stat().st_mtime,
                )
            )
    return PackList(packs=tuple(sorted(found, key=lambda pack: pack.modified)))
