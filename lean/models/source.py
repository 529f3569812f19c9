"""What a source of models is: a pinned listing, and a way to bring one of its files here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lean.errors import UsageError
from lean.leanpack.snapshot import SourceKind

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file as its source describes it.

    `size` in bytes; the hashes are the source's own, where it states them.
    """

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Everything the source has at one pinned revision. `client` names the library and its version."""

    revision: str
    files: tuple[RemoteFile, ...]
    endpoint: str | None
    client: str


class ModelSource(Protocol):
    """A hub or a directory. Its errors are `LeanError`s that name the place; tokens are never in them."""

    @property
    def kind(self) -> SourceKind: ...

    def listing(self) -> Listing:
        """Pin the revision and list its files."""

    def download(self, listing: Listing, file: RemoteFile, folder: Path, *, force: bool) -> str | None:
        """Bring one file to `folder/file.path`, going on where an earlier try stopped unless `force`.

        Returns the sha256 of all its bytes where the source computed it, None where it did not.
        """


def check_id(model_id: str) -> str:
    """`model_id` itself, if it is `<organisation>/<name>` in plain characters. Errors: `UsageError`."""
    if not _ID.fullmatch(model_id) or ".." in model_id:
        raise UsageError(f"id: expected <organisation>/<name>, got {model_id[:200]!r}")
    return model_id


def check_revision(revision: str) -> str:
    """`revision` itself, if it can be a directory's name. Errors: `UsageError`."""
    if not _REVISION.fullmatch(revision):
        raise UsageError(
            f"revision: expected a commit, branch or tag in plain characters, got {revision[:200]!r}"
        )
    return revision


def snapshot_directory(models: Path, model_id: str, revision: str) -> Path:
    """`models/<organisation>__<name>/<revision>`."""
    return models / check_id(model_id).replace("/", "__") / check_revision(revision)
