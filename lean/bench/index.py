"""What a listing remembers of runs whose files have not changed since it read them.

Reading ten thousand records in full takes minutes, asking the file system whether they are still the same
takes a moment. An entry holds for one state of one run's files: name, size, inode, and the times of the last
change of content and of anything at all, to the nanosecond. The last, ctime, no program can set, so an edit
that puts the old modification time back is seen too. Nothing is remembered of files that changed within the
last moments, because a second change within one tick of the clock would look the same (git calls such entries
racily clean), nor anything by other code than this. Whatever is wrong with the index itself, it is as if
there were none. Standard library only.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.bench.sums import RAW_FILES, SUMS_FILE
from lean.files.staging import replace_file

SETTLED_NS = 2_000_000_000  # beyond the resolution of every file system's clock, FAT's two seconds too

_FILES = (*RAW_FILES, SUMS_FILE)
_GONE = (0, 0, 0, 0, 0)
_PACKED = struct.Struct("<" + "IQqqq" * len(_FILES))
_PACKAGE = Path(__file__).resolve().parents[1]

Entries = dict[str, tuple[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesState:
    """The state of a run's files. `settled`: nothing about them changed within the last moments."""

    mark: str
    settled: bool


def files_state(folder: str) -> FilesState:
    """The state of the files of a run directory, from the file system alone."""
    facts: list[int] = []
    newest = 0
    for name in _FILES:
        try:
            s = os.lstat(f"{folder}/{name}")
        except OSError:
            facts += _GONE
            continue
        newest = max(newest, s.st_ctime_ns)
        facts += (s.st_mode, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
    mark = hashlib.blake2b(_PACKED.pack(*facts), digest_size=16).hexdigest()
    return FilesState(mark=mark, settled=newest < time.time_ns() - SETTLED_NS)


def index_file(folder: Path, results_root: Path) -> Path:
    """Where the index of one results folder lies; paths in it are as this folder was named."""
    names = f"{results_root.resolve()}\0{results_root}"
    return folder / f"{hashlib.sha256(names.encode()).hexdigest()[:16]}.json"


def read_index(file: Path) -> Entries:
    """Path -> (mark, what was read), empty where there is no whole index of this very code."""
    try:
        digest, _, body = file.read_bytes().partition(b"\n")
        if digest.decode("ascii") != hashlib.sha256(body).hexdigest():
            return {}
        document = json.loads(body)
        if document["code"] != _code():
            return {}
        return {path: (mark, data) for path, (mark, data) in document["runs"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_index(file: Path, entries: Entries) -> None:
    """Replace the index in one step. A folder that cannot be written has none; listing only takes longer."""
    body = json.dumps({"code": _code(), "runs": entries}, separators=(",", ":"))
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")


@functools.cache
def _code() -> str:
    """The hash of every module that decides what a record says: other code may read it otherwise."""
    digest = hashlib.sha256()
    for folder in (_PACKAGE, _PACKAGE / "bench", _PACKAGE / "contracts", _PACKAGE / "files"):
        for source in sorted(folder.glob("*.py")):
            digest.update(f"{source.name}\0".encode() + source.read_bytes())
    return digest.hexdigest()
