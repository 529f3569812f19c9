"""Push and pull of one file or folder: it arrives whole, or the name at the destination keeps what it held.

Every copy is staged beside its target, compared by sha256 with what the sender read, synced and renamed,
under a lock that names its holder. rsync moves the bytes where both ends have it, 64 MiB chunks in the same
conversation where not; both go on from what an interrupted attempt left.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lean.errors import UsageError, from_document
from lean.transfer.channel import Channel, Refused
from lean.transfer.receive import Target, receive
from lean.transfer.send import Source, send
from remote.ssh.command import plain_path
from remote.ssh.connection import HostConnection
from remote.transfer.far_end import far_end
from remote.transfer.rsync import RsyncMover, local_rsync

Method = Literal["auto", "chunks"]
REPORT_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Bytes present at the destination so far and in all.

    Rate in bytes per second over the whole transfer.
    """

    done: int
    total: int
    rate: float

    @property
    def eta_s(self) -> float | None:
        """Seconds left at this rate, None while nothing moves."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One finished copy.

    `sha256` is the file's own, or for a folder that of its sorted `path, NUL, sha256` lines.

    `size` is what the destination now holds in bytes, `sent` what crossed to get there. `hashes` by
    relative path.
    """

    source: str
    target: str
    method: str
    files: int
    size: int
    sent: int
    sha256: str
    hashes: Mapping[str, str]
    unchanged: bool
    seconds: float


def measure(source: Path) -> tuple[int, int]:
    """Files and bytes a push of `source` would offer. Errors: `TransferError`."""
    files = [entry for entry in _source(source).entries if entry.kind == "file"]
    return len(files), sum(entry.size for entry in files)


def push(
    connection: HostConnection,
    source: Path,
    target: str,
    *,
    replace: bool = False,
    method: Method = "auto",
    on_progress: Callable[[Progress], None] | None = None,
) -> Transfer:
    """Copy a local file or folder to the absolute path `target` on the host.

    An equal copy there is left alone. A folder there that holds more than the source is refused, unless
    `replace` says that it may lose the rest.

    Errors: `TransferError` (source changed, bytes damaged), `PreflightError` (space, somebody else writes
    it, something would be lost), `UnreachableError`; the target then is what it was.
    """
    return push_source(
        connection, _source(source), target, replace=replace, method=method, on_progress=on_progress
    )


def push_source(
    connection: HostConnection,
    source: Source,
    target: str,
    *,
    basis: tuple[str, ...] = (),
    replace: bool = False,
    method: Method = "auto",
    on_progress: Callable[[Progress], None] | None = None,
) -> Transfer:
    """`push` of a prepared listing; equal files are hard-linked from the `basis` folders of the host."""
    _absolute("target", target)
    meter = _Meter(sum(entry.size for entry in source.listing()), on_progress)
    mover = _mover(connection, os.path.realpath(source.root), True, method, meter, target)
    idle = str(2 * connection.settings.stall_timeout)
    argv = ["receive", target, idle, _who(), "replace" if replace else "keep", *basis]
    with far_end(connection, argv, on_count=meter.count) as channel:
        word = send(channel, source, mover=mover)
        return _transfer(source.root, word, channel, mover, meter)


def pull(
    connection: HostConnection,
    source: str,
    target: Path,
    *,
    replace: bool = False,
    method: Method = "auto",
    on_progress: Callable[[Progress], None] | None = None,
) -> Transfer:
    """Copy the file or folder `source` of the host (absolute) to the local `target`. Errors: as `push`.

    A listing that would write outside the target is refused before anything is written.
    """
    _absolute("source", source)
    meter = _Meter(0, on_progress)
    mover = _mover(connection, source, False, method, meter, source)
    to = Target(path=str(target.absolute()), who=_who(), private=False, replace=replace)
    idle = str(2 * connection.settings.stall_timeout)
    with far_end(connection, ["send", source, idle], on_count=meter.count) as channel:
        word = receive(channel, to, mover=mover, on_total=meter.expect)
        return _transfer(source, word, channel, mover, meter)


def _source(path: Path) -> Source:
    try:
        return Source.of(str(path.absolute()))
    except Refused as refusal:
        raise from_document(refusal.document()) from None


def _absolute(what: str, path: str) -> None:
    if not plain_path(what, path).startswith("/"):
        raise UsageError(f"{what} {path!r}: expected an absolute path on the host")


def _mover(
    connection: HostConnection, source: str, push: bool, method: Method, meter: _Meter, there: str
) -> RsyncMover | None:
    rsync = local_rsync() if method == "auto" else None
    if rsync is None:
        return None
    mover = RsyncMover(connection, rsync, source=source, push=push, on_count=meter.count)
    return mover if mover.usable(there) else None


def _who() -> str:
    return f"{getpass.getuser()}@{platform.node()}"


class _Meter:
    """Turns byte counts into a few progress reports a second."""

    def __init__(self, total: int, report: Callable[[Progress], None] | None) -> None:
        self.total, self._report = total, report
        self.started = time.monotonic()
        self._next = self.started

    def expect(self, total: int) -> None:
        self.total = total

    def count(self, done: int) -> None:
        now = time.monotonic()
        if self._report is not None and (now >= self._next or done >= self.total):
            self._next = now + REPORT_S
            elapsed = now - self.started
            self._report(Progress(done=done, total=self.total, rate=done / elapsed if elapsed > 0 else 0.0))


def _transfer(
    source: str, word: Mapping[str, Any], channel: Channel, mover: RsyncMover | None, meter: _Meter
) -> Transfer:
    hashes: dict[str, str] = word["sha256"]
    return Transfer(
        source=source,
        target=str(word["target"]),
        method="rsync" if mover is not None and mover.used else "chunks",
        files=len(hashes),
        size=meter.total,
        sent=channel.counted + (mover.moved if mover is not None else 0),
        sha256=hashes[""] if "" in hashes else tree_sha256(hashes),
        hashes=hashes,
        unchanged=bool(word["unchanged"]),
        seconds=time.monotonic() - meter.started,
    )


def tree_sha256(hashes: Mapping[str, str]) -> str:
    """One hash for a folder: sha256 over `path, NUL, sha256, newline`, sorted by path."""
    lines = (f"{path}\0{sha256}\n" for path, sha256 in sorted(hashes.items()))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
