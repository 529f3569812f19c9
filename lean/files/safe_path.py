"""Names and JSON in a directory we did not write: nothing leaves it, nothing is a link or a device."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from lean.errors import PackError
from lean.strict_json import parse_object

MAX_FILES = 10_000
MAX_DEPTH = 4
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFDIR: "a directory",
}


def check_relative_name(name: str, origin: str) -> str:
    """`name` itself, if it is a plain relative path: ASCII components, no `..`, no leading dot or dash.

    Errors: `PackError` quoting the name; `origin` says where it was read.
    """
    parts = name.split("/")
    if len(parts) > MAX_DEPTH or not all(_COMPONENT.fullmatch(part) for part in parts):
        raise PackError(
            f"{origin}: unsafe file name {name[:200]!r}: expected plain names below the directory"
        )
    return name


def list_regular_files(root: Path) -> dict[str, int]:
    """Relative name -> size in bytes of every file below `root`.

    Errors: `PackError` naming the first link, FIFO, device, unsafe name, too deep directory or unreadable
    entry.
    """
    found: dict[str, int] = {}
    _walk(root, "", found)
    return found


def _walk(folder: Path, prefix: str, found: dict[str, int]) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise PackError(f"{folder}: cannot be read: {error.strerror}") from None
    for entry in entries:
        name = check_relative_name(f"{prefix}{entry.name}", str(folder))
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            _walk(folder / entry.name, f"{name}/", found)
        elif stat.S_ISREG(mode):
            found[name] = entry.stat(follow_symlinks=False).st_size
        else:
            raise PackError(f"{folder / entry.name}: is {_kind(mode)}; only regular files belong here")
        if len(found) > MAX_FILES:
            raise PackError(f"{folder}: more than {MAX_FILES} files")


def open_regular(root: Path, name: str) -> int:
    """A read-only descriptor of the regular file `root/name`; no component of `name` may be a link.

    Never blocks on a FIFO. Errors: `PackError` naming the file and why it cannot be used.
    """
    parts = check_relative_name(name, str(root)).split("/")
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    folder = None
    try:
        folder = os.open(root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        for part in parts[:-1]:
            inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        mode = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode
        if not stat.S_ISREG(mode):
            raise PackError(f"{root / name}: is {_kind(mode)}; expected a regular file")
        descriptor = os.open(parts[-1], flags, dir_fd=folder)
    except OSError as error:
        raise PackError(f"{root / name}: cannot be opened: {error.strerror}") from None
    finally:
        if folder is not None:
            os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PackError(f"{root / name}: changed into something else while it was opened")
    return descriptor


def read_small(root: Path, name: str, limit: int) -> bytes:
    """The whole of `root/name`, refused before it is read when it is larger than `limit` bytes."""
    descriptor = open_regular(root, name)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise PackError(f"{root / name}: {size} bytes; expected at most {limit}")
        return os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "not a regular file")


def json_object(data: bytes, origin: str) -> dict[str, Any]:
    """A JSON object that nobody vouches for. `origin` names the file. Errors: `PackError`."""
    try:
        return parse_object(data)
    except ValueError as error:
        raise PackError(f"{origin}: {error}") from None
