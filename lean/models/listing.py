"""Which complete snapshots a models directory holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lean.errors import PackError
from lean.leanpack.checkpoint import read_shard_plan
from lean.leanpack.snapshot import RECORD_NAME, read_snapshot
from lean.models.source import check_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedSnapshot:
    """One snapshot that has all its weights. `completed` is UTC, `bytes` the size of its recorded files."""

    path: str
    id: str
    revision: str
    source: str
    completed: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotList:
    """`snapshots` oldest first; `damaged` says what is wrong with those that cannot be read."""

    snapshots: tuple[ListedSnapshot, ...]
    damaged: tuple[str, ...]


def list_snapshots(models: Path, model_id: str | None = None) -> SnapshotList:
    """The complete snapshots below `models`, of one model or of all; a metadata preflight is none.

    Nothing is hashed: building a pack does that. Errors: `UsageError` for an ill-formed id.
    """
    folder = check_id(model_id).replace("/", "__") if model_id else "*"
    found, damaged = [], []
    for record in sorted(models.glob(f"{folder}/*/{RECORD_NAME}")):
        try:
            listed = _listed(record.parent)
        except PackError as error:
            damaged.append(str(error))
        else:
            found += [listed] if listed else []
    found.sort(key=lambda listed: (listed.completed, listed.path))
    return SnapshotList(snapshots=tuple(found), damaged=tuple(damaged))


def _listed(folder: Path) -> ListedSnapshot | None:
    snapshot = read_snapshot(folder)
    if snapshot is None or not {file.path for file in snapshot.files} >= set(read_shard_plan(folder).shards):
        return None
    return ListedSnapshot(
        path=str(folder),
        id=snapshot.id,
        revision=snapshot.revision,
        source=snapshot.source,
        completed=snapshot.completed,
        bytes=sum(file.size for file in snapshot.files),
    )
