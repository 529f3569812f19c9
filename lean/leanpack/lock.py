"""LOCK, the root hash of a pack: one sha256 over the sorted list of (path, size, sha256)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lean.errors import PackError
from lean.files.hashing import sha256_descriptor
from lean.files.safe_path import open_regular, read_small

LOCK_NAME = "LOCK"
_TEXT = re.compile(rb"[0-9a-f]{64}\n")
_NAMED = re.compile(r".*-([0-9a-f]{8})")
_THREADS = 8  # hashlib leaves the interpreter while it hashes; more threads than this meet the memory's speed


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of a pack: path below the pack, bytes, and hexadecimal sha256."""

    path: str
    size: int
    sha256: str


def lock_of(files: Iterable[FileRecord]) -> str:
    """The root hash: sha256 of the lines `path TAB size TAB sha256 LF`, sorted by path in byte order.

    Every file but LOCK itself belongs into it, manifest.json too.
    """
    lines = sorted(f"{file.path}\t{file.size}\t{file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_lock(root: Path) -> str:
    """The hash written in LOCK.

    Errors: `PackError` unless the file is exactly 64 hexadecimal digits and a newline, or when the
    directory's own name carries another hash.
    """
    text = read_small(root, LOCK_NAME, 65)
    if not _TEXT.fullmatch(text):
        raise PackError(
            f"{root / LOCK_NAME}: expected 64 hexadecimal digits and a newline; the pack was altered"
        )
    lock = text[:64].decode()
    named = _NAMED.fullmatch(root.resolve().name)
    if named and named.group(1) != lock[:8]:
        raise PackError(f"{root}: the directory is named {named.group(1)}, its LOCK begins with {lock[:8]}")
    return lock


def hash_files(root: Path, names: Iterable[str]) -> tuple[FileRecord, ...]:
    """Hash files below `root`, several at once, each in bounded memory. Errors: `PackError`."""
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return tuple(pool.map(lambda name: _record(root, name), names))


def _record(root: Path, name: str) -> FileRecord:
    descriptor = open_regular(root, name)
    try:
        size = os.fstat(descriptor).st_size
        return FileRecord(path=name, size=size, sha256=sha256_descriptor(descriptor))
    finally:
        os.close(descriptor)
