"""Writing beside and renaming: a name holds the whole of the old, or of the new, or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lean.errors import PreflightError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise `PreflightError` unless the file system of `folder` has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PreflightError(f"{what} needs {needed} bytes and {folder} has {free} free; make room there")


@contextlib.contextmanager
def named_disk_errors(folder: Path, what: str) -> Iterator[None]:
    """Turn a full or closed disk into a `PreflightError` that names the place and the fix."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise PreflightError(f"{what}: the disk of {folder} is full; make room there") from None
        if error.errno in _CLOSED:
            raise PreflightError(f"{what}: {folder} cannot be written: {error.strerror}") from None
        raise


@contextlib.contextmanager
def staged_directory(staging: Path) -> Iterator[Path]:
    """A fresh directory to write into; gone afterwards unless it was published."""
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def clear_left_behind(folder: Path, prefix: str) -> None:
    """Remove what a killed process left under names that begin with `prefix`. The caller holds the lock."""
    for path in folder.glob(f"{prefix}*"):
        shutil.rmtree(path, ignore_errors=True)


def write_file(root: Path, name: str, data: bytes) -> None:
    """Write `root/name`, creating folders, synced to the disk and read-only."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        seal(file.fileno())


def seal(descriptor: int) -> None:
    """Sync a finished file and take away the right to write to it."""
    os.fsync(descriptor)
    os.fchmod(descriptor, 0o400)


def publish(staging: Path, final: Path, *, replace: bool = False) -> None:
    """Sync a finished directory and give it its name.

    `replace`: a directory that had the name before is removed, and only after; else that is an `OSError`.
    """
    for folder, _, files in os.walk(staging):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))
    aside = staging.with_name(staging.name + "-old")
    if replace and final.exists():
        final.rename(aside)
    staging.rename(final)
    _sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def publish_file(staged: Path, final: Path) -> None:
    """Sync a finished file and give it its name, in place of what had it before."""
    _sync(staged)
    staged.replace(final)
    _sync(final.parent)


def replace_file(path: Path, text: str, *, staged: Path | None = None) -> None:
    """Make `text` the content of `path` in one step, by way of `staged`, else a hidden file beside it.

    Errors: `OSError`; `path` is then what it was, and `staged` is gone.
    """
    staged = staged or path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staged.write_text(text, encoding="utf-8")
        publish_file(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
