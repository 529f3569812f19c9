"""A local directory as a source: copied and hashed on both sides, links not followed."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from lean import __version__
from lean.errors import UsageError
from lean.files.safe_path import open_regular
from lean.leanpack.lock import hash_files, lock_of
from lean.leanpack.snapshot import SourceKind
from lean.models.selection import DEFAULT_ALLOW, select
from lean.models.source import Listing, RemoteFile


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorySource:
    """Its revision is a hash over the files that make up the model, so other bytes are another revision."""

    path: Path
    kind: SourceKind = "local"

    def listing(self) -> Listing:
        """Hash every file that a model may consist of.

        Errors: `PackError` for a link or an odd file among them.
        """
        if not self.path.is_dir():
            raise UsageError(f"{self.path}: no such directory")
        names = [RemoteFile(path=name, size=0) for name in self._names()]
        selection = select(names, DEFAULT_ALLOW, str(self.path))
        hashed = hash_files(self.path, [file.path for file in selection.chosen])
        never = [RemoteFile(path=name, size=0) for name in selection.refused]
        return Listing(
            revision=f"sha256-{lock_of(hashed)[:16]}",
            files=(*(RemoteFile(path=f.path, size=f.size, sha256=f.sha256) for f in hashed), *never),
            endpoint=None,
            client=f"leanstack {__version__}",
        )

    def download(self, listing: Listing, file: RemoteFile, folder: Path, *, force: bool) -> str | None:
        """Copy one file. There is nothing to resume: a copy that did not finish is made again."""
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_regular(self.path, file.path), "rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        return None

    def _names(self) -> list[str]:
        found = []
        for folder, _, files in os.walk(self.path):
            found += [(Path(folder) / name).relative_to(self.path).as_posix() for name in files]
        return sorted(found)
