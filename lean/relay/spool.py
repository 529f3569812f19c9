"""Downloading ahead: chunks wait on this machine's disk, at most so many bytes, until the host takes them.

A chunk's name holds what it is of and its sha256, so one that an earlier run left is used after its bytes
were hashed again, and one whose bytes changed on the disk is downloaded again.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from lean.errors import UsageError
from lean.relay.origin import Changed, Origin, Version, repeated

CHUNK = 16 << 20  # bytes between two points from which a relay can go on
STREAMS = 4  # chunks, of one file or of several, on their way at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One file of which the host lacks everything from byte `start` of the version `version` on."""

    index: int
    url: str
    start: int = 0
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Bytes `start` to `end` of one version of one file."""

    wanted: Wanted
    version: Version
    start: int
    end: int

    @property
    def key(self) -> str:
        """Names the version and the place in it."""
        return f"{version_id(self.wanted.url, self.version)}-{self.start}-{self.end}"


def version_id(url: str, version: Version) -> str:
    """Names one version of one address, and says nothing about either."""
    text = f"{url}\n{version.validator}\n{version.size}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Spool:
    """Chunks of the wanted files in order, downloaded ahead into `folder`, at most `limit` bytes.

    Context manager; leaving it stops the threads and keeps whole chunks for the next run.
    """

    def __init__(self, origin: Origin, folder: Path, *, limit: int) -> None:
        """Errors: `UsageError` for a limit below two chunks."""
        if limit < 2 * CHUNK:
            raise UsageError(f"the spool needs at least {2 * CHUNK} bytes, got {limit}")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._origin, self._folder, self._most = origin, folder, limit // CHUNK
        self._pool = ThreadPoolExecutor(STREAMS, thread_name_prefix="relay")
        self._ahead: deque[tuple[Chunk, Future[str]]] = deque()
        self._coming: Iterator[Chunk] = iter(())
        self._stop = threading.Event()  # one for every plan
        self._left = self._left_behind()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def abandon(self) -> None:
        """Forget what was asked for; downloads under way end at their next piece. What is whole is kept."""
        self._stop.set()
        for _, future in self._ahead:
            future.cancel()
        wait_for([future for _, future in self._ahead])
        self._ahead.clear()
        self._coming = iter(())
        self._stop = threading.Event()
        self._left = self._left_behind()

    def clear(self) -> None:
        """Remove everything: the files are where they belong."""
        for path in self._folder.iterdir():
            path.unlink()
        self._folder.rmdir()

    def want(self, chunks: Iterator[Chunk]) -> None:
        """Begin to download these, in this order."""
        self._coming = chunks
        self._top_up()

    def next(self) -> tuple[Chunk, Future[str]] | None:
        """The next chunk and its download, which ends with its sha256; None after the last one."""
        self._top_up()
        return self._ahead.popleft() if self._ahead else None

    def take(self, chunk: Chunk, sha256: str) -> bytes:
        """A downloaded chunk's bytes. Ones that changed on this machine's disk are downloaded again, once.

        Errors: `Changed` when they are others then too, and those of downloading.
        """
        path = self._path(chunk, sha256)
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data).hexdigest() != sha256:
            path.unlink(missing_ok=True)
            if self._download(chunk, self._stop) != sha256:
                raise Changed("the second download had other bytes")
            data = path.read_bytes()
        path.unlink()
        return data

    def _top_up(self) -> None:
        while len(self._ahead) < self._most:
            chunk = next(self._coming, None)
            if chunk is None:
                return
            claimed = self._left.pop(chunk.key, None) is not None
            if not claimed and len(self._ahead) + len(self._left) >= self._most:
                self._left.pop(next(iter(self._left))).unlink()
            self._ahead.append((chunk, self._pool.submit(self._fetch, chunk, self._stop)))

    def _fetch(self, chunk: Chunk, stop: threading.Event) -> str:
        for path in self._folder.glob(f"{chunk.key}.*"):
            if not path.name.endswith(".part"):
                return path.suffix[1:]
        return repeated(lambda: self._download(chunk, stop), stop)

    def _download(self, chunk: Chunk, stop: threading.Event) -> str:
        """Into the spool, whole or not at all; a try that broke off starts the chunk anew."""
        part = self._folder / f"{chunk.key}.part"
        running = hashlib.sha256()
        with (
            open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", buffering=0) as file,
            closing(self._origin.read(chunk.wanted.url, chunk.version, chunk.start, chunk.end)) as pieces,
        ):
            for piece in pieces:
                if stop.is_set():
                    raise CancelledError
                running.update(piece)
                file.write(piece)
        part.rename(self._path(chunk, running.hexdigest()))
        return running.hexdigest()

    def _path(self, chunk: Chunk, sha256: str) -> Path:
        return self._folder / f"{chunk.key}.{sha256}"

    def _left_behind(self) -> dict[str, Path]:
        """Whole chunks of an earlier run by key, oldest first. They count towards the limit."""
        for part in self._folder.glob("*.part"):
            part.unlink()
        found = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in found[: max(0, len(found) - self._most)]:
            path.unlink()
        return {path.stem: path for path in found[max(0, len(found) - self._most) :]}


def chunks_of(wanted: Wanted, version: Version, start: int) -> Iterator[Chunk]:
    """Cut the rest of a file at multiples of `CHUNK`."""
    while start < version.size:
        end = min(version.size, start - start % CHUNK + CHUNK)
        yield Chunk(wanted=wanted, version=version, start=start, end=end)
        start = end
