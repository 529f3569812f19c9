"""`fetch.json`, the record that completes a model snapshot: where its files came from and their hashes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lean.contracts import from_data
from lean.errors import ContractError, PackError
from lean.files.safe_path import check_relative_name, json_object, read_small

RECORD_NAME = "fetch.json"
MAX_RECORD_BYTES = 4 << 20

SourceKind = Literal["huggingface", "modelscope", "local", "directory"]
HUBS: tuple[SourceKind, ...] = ("huggingface", "modelscope")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a checkpoint. `hub_verified`: the hub itself stated a hash, and these bytes have it."""

    path: str
    size: int
    sha256: str
    hub_verified: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What `fetch.json` says. `revision` is pinned: a commit, or a hash over the listing where there is none.

    `requested` is what the user asked for (a branch, say), `refused` what the source offers and we never
    take.
    """

    SCHEMA: ClassVar[str] = "fetch/v1"

    source: SourceKind
    id: str
    revision: str
    requested: str | None
    endpoint: str | None
    allow: tuple[str, ...]
    files: tuple[SourceFile, ...]
    refused: tuple[str, ...]
    client: str
    completed: str


def read_snapshot(folder: Path) -> Snapshot | None:
    """The record of a fetched model directory, or None where there is none. Errors: `PackError`."""
    if not (folder / RECORD_NAME).exists():
        return None
    origin = str(folder / RECORD_NAME)
    data = json_object(read_small(folder, RECORD_NAME, MAX_RECORD_BYTES), origin)
    try:
        snapshot = from_data(Snapshot, data, origin)
    except ContractError as error:
        raise PackError(str(error)) from None
    for file in snapshot.files:
        check_relative_name(file.path, f"{origin}: files")
    return snapshot
