"""Which complete snapshots a models folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lean.leanpack.snapshot import Snapshot, read_snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedSnapshot:
    """One complete snapshot. `completed` is UTC."""

    path: str
    id: str
    revision: str
    source: str
    completed: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotList:
    """Complete snapshots, the newest last."""

    snapshots: tuple[ListedSnapshot, ...]


def list_snapshots(models: Path, model_id: str | None = None) -> SnapshotList:
    """Snapshots below `models` whose record is there, of one model or of all. Errors: `PackError`."""
    found = [
        _listed(folder, record)
        for folder in sorted(models.glob("*/*"))
        if folder.is_dir() and (record := read_snapshot(folder)) is not None
    ]
    wanted = [snapshot for snapshot in found if model_id in (None, snapshot.id)]
    return SnapshotList(snapshots=tuple(sorted(wanted, key=lambda snapshot: snapshot.completed)))


def _listed(folder: Path, record: Snapshot) -> ListedSnapshot:
    return ListedSnapshot(
        path=str(folder),
        id=record.id,
        revision=record.revision,
        source=record.source,
        completed=record.completed,
        bytes=sum(file.size for file in record.files),
    )
