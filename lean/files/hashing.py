"""Hashes of files by descriptor, in bounded memory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

CHUNK = 256 << 10  # bytes; hashlib dominates from here on, and several threads hold one each


def sha256_descriptor(descriptor: int) -> str:
    """Hexadecimal sha256 of the whole file. The file position is neither used nor moved."""
    digest = hashlib.sha256()
    _feed(descriptor, digest)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file by its path. Errors: `OSError`."""
    with path.open("rb") as file:
        return sha256_descriptor(file.fileno())


def git_blob_sha1(descriptor: int) -> str:
    """The object id git gives this content: sha1 over `blob <size>`, a zero byte and the bytes.

    Hugging Face states it, instead of a sha256, for files that are not in LFS.
    """
    digest = hashlib.sha1(f"blob {os.fstat(descriptor).st_size}\0".encode(), usedforsecurity=False)
    _feed(descriptor, digest)
    return digest.hexdigest()


def _feed(descriptor: int, digest: hashlib._Hash) -> None:
    offset = 0
    while chunk := os.pread(descriptor, CHUNK, offset):
        digest.update(chunk)
        offset += len(chunk)
