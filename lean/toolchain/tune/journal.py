"""A journal: one JSON line for each thing done, on the disk before the next one begins.

The first line says what the rest is about. A journal about something else is put aside and begun anew; a last
line that was cut short never counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from lean.errors import PreflightError

KEY = "key"


def read_journal(path: Path) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]], int]:
    """The header, the entries by key, and how many bytes of the file are whole lines of them."""
    header: dict[str, Any] | None = None
    entries: dict[str, dict[str, Any]] = {}
    whole = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
        try:
            found = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(found, dict):
            break
        if header is None:
            header = found
        elif KEY in found:
            entries[str(found[KEY])] = found
        whole += len(line)
    return header, entries, whole


class Journal:
    """One journal, open for adding. `entries`: what is in it, by key.

    Errors: `PreflightError` while another process writes it, or when it cannot be written.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self._path = path
        with self._named():
            self._open(header)

    def _open(self, header: dict[str, Any]) -> None:
        path = self._path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = path.with_name(f"{path.name}.lock").open("ab")  # the journal itself may be put aside
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise PreflightError(
                f"{path}: another process writes it; wait for its end, or give another --out"
            ) from None
        found, self.entries, whole = read_journal(path)
        fresh = found != header
        if fresh and found is not None:
            os.replace(path, path.with_name(f"{path.name}.old"))
        if fresh:
            self.entries, whole = {}, 0
        self._file = path.open("ab")
        self._file.truncate(whole)
        if fresh:
            self._write(header)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.close()

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Keep an entry; once this returns it is on the disk."""
        whole = {**entry, KEY: key}
        with self._named():
            self._write(whole)
        self.entries[key] = whole

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self._path
            raise PreflightError(
                f"{where}: {error.strerror}; give a writable --out with space free; what was done is kept"
            ) from None

    def _write(self, document: dict[str, Any]) -> None:
        self._file.write(json.dumps(document, sort_keys=True).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
