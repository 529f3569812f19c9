"""Bringing a snapshot here: pinned, staged, hashed, files renamed once proven, `fetch.json` last."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lean.contracts import to_data
from lean.errors import PackError, TransferError
from lean.files.exclusive import hold
from lean.files.hashing import git_blob_sha1, sha256_descriptor
from lean.files.safe_path import open_regular
from lean.files.staging import check_space, named_disk_errors, replace_file
from lean.leanpack.snapshot import HUBS, RECORD_NAME, Snapshot, SourceFile, read_snapshot
from lean.models.selection import DEFAULT_ALLOW, Selection, select
from lean.models.source import Listing, ModelSource, RemoteFile, check_id, snapshot_directory

SLACK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchReport:
    """What is there now.

    `downloaded` and `reused` count files, `bytes` is their size; nothing downloaded means that a verified
    snapshot was there already. `refused` are pickles and code the source offers.
    """

    path: str
    id: str
    source: str
    revision: str
    requested: str | None
    downloaded: int
    reused: int
    bytes: int
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One fetch under way. `final` receives proven files, `staging` lies beside it on the same disk."""

    source: ModelSource
    listing: Listing
    final: Path
    staging: Path


def fetch(
    source: ModelSource,
    model_id: str,
    models: Path,
    *,
    requested: str | None = None,
    allow: tuple[str, ...] = (),
    on_missing: Callable[[list[RemoteFile], Path], None] | None = None,
) -> FetchReport:
    """Complete `models/<org>__<name>/<revision>/` from `source` and return what it holds.

    Safe to run again after any interruption: finished files are hashed and kept, partial ones go on where
    the client library can, a verified snapshot is left as it is. `on_missing` hears once which files will be
    downloaded, in order, and into which folder. Errors: `UsageError`, `AuthError`,
    `UnreachableError` from the source; `PackError` for unsafe names; `PreflightError` for a full disk or a
    second fetch of the same snapshot; `TransferError` for bytes that do not have the source's hash.
    """
    patterns = allow or DEFAULT_ALLOW
    check_id(model_id)
    with named_disk_errors(models, f"fetching {model_id}"):
        listing = source.listing()
        selection = select(listing.files, patterns, f"{listing.endpoint or source.kind}: {model_id}")
        final = snapshot_directory(models, model_id, listing.revision)
        staging = final.with_name(f".{final.name}.partial")
        job = _Job(source=source, listing=listing, final=final, staging=staging)
        final.mkdir(parents=True, exist_ok=True)
        with hold(final.with_name(f".{final.name}.lock"), f"{model_id} at {listing.revision}"):
            files, downloaded = _complete(job, selection, on_missing)
            record = Snapshot(
                source=source.kind,
                id=model_id,
                revision=listing.revision,
                requested=requested,
                endpoint=listing.endpoint,
                allow=patterns,
                files=files,
                refused=selection.refused,
                client=listing.client,
                completed=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )
            _write_record(final, record)
            shutil.rmtree(staging, ignore_errors=True)
    return FetchReport(
        path=str(final),
        id=model_id,
        source=source.kind,
        revision=listing.revision,
        requested=requested,
        downloaded=downloaded,
        reused=len(files) - downloaded,
        bytes=sum(file.size for file in files),
        refused=selection.refused,
    )


def _complete(
    job: _Job, selection: Selection, on_missing: Callable[[list[RemoteFile], Path], None] | None
) -> tuple[tuple[SourceFile, ...], int]:
    """Have every chosen file in `final`; how many had to be brought."""
    found = {file.path: _proven(job, file) for file in selection.chosen}
    missing = [file for file in selection.chosen if found[file.path] is None]
    needed = sum(file.size - _staged(job, file) for file in missing)
    check_space(job.final, needed + SLACK_BYTES, f"{job.final}")
    if on_missing is not None:
        on_missing(missing, job.staging)
    for count, file in enumerate(missing, 1):
        place = f"{count} of {len(missing)}"
        print(f"fetch {file.path}, {file.size} bytes ({place})", file=sys.stderr, flush=True)
        found[file.path] = _bring(job, file)
    return tuple(record for record in found.values() if record is not None), len(missing)


def _staged(job: _Job, file: RemoteFile) -> int:
    """Bytes of a file that an earlier try left in its place."""
    try:
        return min(file.size, os.lstat(job.staging / file.path).st_size)
    except OSError:
        return 0


def _bring(job: _Job, file: RemoteFile) -> SourceFile:
    for force in (False, True):  # a resumed or cached file may be bad: then once more from its first byte
        job.staging.mkdir(parents=True, exist_ok=True)
        try:
            sha256 = job.source.download(job.listing, file, job.staging, force=force)
            record = _check(job, job.staging, file, sha256)
        except TransferError:
            (job.staging / file.path).unlink(missing_ok=True)  # others may be half-way
            if force:
                raise
        else:
            _rename(job.staging / file.path, job.final / file.path)
            return record
    raise AssertionError("the second try returns or raises")


def _proven(job: _Job, file: RemoteFile) -> SourceFile | None:
    """The record of a file that is there and right; None when it must be brought."""
    if not os.path.lexists(job.final / file.path):
        return None
    if file.sha256 is None and file.git_sha1 is None:
        return None  # nothing to prove it by
    try:
        return _check(job, job.final, file)
    except TransferError:
        return None  # the right bytes will take its name in one step


def _check(job: _Job, folder: Path, file: RemoteFile, known: str | None = None) -> SourceFile:
    """Hash a file, unless its hash is `known`, and compare it with what its source stated.

    Errors: `TransferError` naming both values.
    """
    descriptor = open_regular(folder, file.path)
    try:
        size = os.fstat(descriptor).st_size
        if size != file.size:
            raise TransferError(f"{file.path}: {size} bytes arrived, the source says {file.size}")
        sha256 = known or sha256_descriptor(descriptor)
        if file.sha256 is not None and sha256 != file.sha256:
            raise TransferError(f"{file.path}: sha256 is {sha256}, the source says {file.sha256[:80]}")
        if file.git_sha1 is not None and (sha1 := git_blob_sha1(descriptor)) != file.git_sha1:
            raise TransferError(f"{file.path}: git object id is {sha1}, the source says {file.git_sha1[:80]}")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    stated = file.sha256 is not None or file.git_sha1 is not None
    from_hub = job.source.kind in HUBS
    return SourceFile(path=file.path, size=size, sha256=sha256, hub_verified=stated and from_hub)


def _rename(staged: Path, final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    staged.replace(final)


def _write_record(final: Path, record: Snapshot) -> None:
    """Replace `fetch.json`, unless it says the same already; keep files an earlier fetch proved."""
    try:
        before = read_snapshot(final)
    except PackError:
        before = None  # damaged: the files were hashed just now, so a new record is all that is missing
    if before is not None:
        known = {file.path: file for file in before.files if (final / file.path).is_file()}
        merged = {**known, **{file.path: file for file in record.files}}
        allow = tuple(dict.fromkeys((*before.allow, *record.allow)))
        record = replace(record, files=tuple(merged[name] for name in sorted(merged)), allow=allow)
        if replace(before, completed=record.completed, requested=record.requested) == record:
            return
    body = json.dumps(to_data(record), indent=1, sort_keys=True) + "\n"
    # staged outside, so that whatever is killed meanwhile leaves nothing odd among the snapshot's own files
    replace_file(final / RECORD_NAME, body, staged=final.with_name(f".{final.name}.{RECORD_NAME}"))
