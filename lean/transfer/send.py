"""The sending end.

Offers a listing, hears what is there already, sends the rest, and notices a moving source.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any

from lean.transfer.channel import PIECE, Channel, Refused
from lean.transfer.tree import Entry, scan

CHUNK = 64 << 20  # bytes between two points from which a transfer can be resumed

# (staged root, names below it, what to call now and then): one end's rsync child, which moves these files
Mover = Callable[[str, list[str], Callable[[], None]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is sent: a file, or the listed part of a tree.

    `added`: files that exist only here, by path, sent after all others. `expected`: sha256 some files must
    have.
    """

    root: str
    entries: list[Entry]
    tree: bool
    added: Mapping[str, bytes] = field(default_factory=dict)
    expected: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, root: str) -> Source:
        """A whole file or folder. Errors: `Refused`."""
        entries = scan(root)
        return cls(root=root, entries=entries, tree=[entry.path for entry in entries] != [""])

    def listing(self) -> list[Entry]:
        """The entries as they are offered, the added ones last."""
        return self.entries + [Entry(path, "file", len(data)) for path, data in self.added.items()]

    def open(self, entry: Entry) -> IO[bytes]:
        """The entry's bytes, unbuffered, a link in its place refused."""
        if entry.path in self.added:
            return io.BytesIO(self.added[entry.path])
        flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_NOFOLLOW if entry.path else 0)
        try:
            descriptor = os.open(self._path(entry), flags)
        except OSError as error:
            raise Refused("TransferError", f"cannot read {self._path(entry)}: {error.strerror}") from None
        file = io.FileIO(descriptor)
        try:
            self._compare(entry, os.fstat(descriptor))
        except Refused:
            file.close()
            raise
        return file

    def check_unchanged(self, entry: Entry) -> None:
        """Refuse when the file is no longer what the listing said."""
        if entry.kind == "file" and entry.path not in self.added:
            try:
                self._compare(entry, os.stat(self._path(entry), follow_symlinks=not entry.path))
            except OSError:
                raise self.changed(entry) from None

    def check_hash(self, entry: Entry, sha256: str) -> None:
        """Refuse when the bytes read are not the bytes the listing was made from."""
        if self.expected.get(entry.path, sha256) != sha256:
            raise self.changed(entry)

    def _compare(self, entry: Entry, now: os.stat_result) -> None:
        same = stat.S_ISREG(now.st_mode) and (now.st_size, now.st_mtime_ns) == (entry.size, entry.mtime_ns)
        if not same:
            raise self.changed(entry)

    def changed(self, entry: Entry) -> Refused:
        """The refusal for a file that did not hold still."""
        return Refused(
            "TransferError", f"{self._path(entry)} changed while it was read; nothing was replaced"
        )

    def _path(self, entry: Entry) -> str:
        return os.path.join(self.root, entry.path) if entry.path else self.root


def send(
    channel: Channel, source: Source, *, mover: Mover | None = None, rsync: bool = False
) -> dict[str, Any]:
    """Send it all and return the receiver's last word: `{"sha256": {path: hex}, "unchanged": bool, …}`.

    `mover` moves the needed files with rsync from this end; `rsync` says that the other end may fetch with
    its own. Errors: `Refused`, `ChannelError`.
    """
    entries = source.listing()
    channel.send({"tree": source.tree, "entries": [entry.wire() for entry in entries], "rsync": rsync})
    answer = channel.receive()
    try:
        needed = _keep(channel, source, entries, answer["have"])
        if needed and not source.added and (answer["moves"] or (mover is not None and answer["rsync"])):
            own = mover if not answer["moves"] else None
            channel.send({"need": sorted(needed)})
            channel.receive()  # until then a wrong file may still lie where rsync would believe it
            _moved(channel, source, entries, needed, str(answer["stage"]), own)
        else:
            for index in sorted(needed):
                _stream(channel, source, entries[index], index, needed[index])
        for entry in entries:
            source.check_unchanged(entry)
    except Refused as error:
        channel.send(error.document())
        channel.flush()
        raise
    channel.send({"end": True})
    return channel.receive()


@dataclass(slots=True)
class Prefix:
    """How much of a file the receiver has, and the running hash of just that much."""

    length: int
    sha256: Any


def _keep(
    channel: Channel, source: Source, entries: list[Entry], have: Mapping[str, list[tuple[int, str]]]
) -> dict[int, Prefix]:
    """Tell the receiver which of its files are good, and return how to go on with the others, by index."""
    needed = {}
    for index, entry in enumerate(entries):
        if entry.kind != "file":
            continue
        prefix = _common(channel, source, entry, have.get(str(index), []))
        if prefix is not None and prefix.length == entry.size:
            source.check_hash(entry, prefix.sha256.hexdigest())
            channel.send({"file": index, "from": entry.size})
            channel.skip(entry.size)
        else:
            needed[index] = prefix or Prefix(0, hashlib.sha256())
    return needed


def _common(channel: Channel, source: Source, entry: Entry, chain: list[tuple[int, str]]) -> Prefix | None:
    """The longest prefix both ends have, going by the receiver's hashes of its prefixes."""
    found, running, done = None, hashlib.sha256(), 0
    if not chain:
        return None
    with source.open(entry) as file:
        for length, theirs in chain:
            while done < length and (piece := file.read(min(PIECE, length - done))):
                running.update(piece)
                done += len(piece)
                channel.beat()
            if done != length or running.hexdigest() != theirs:
                break
            found = Prefix(length, running.copy())
    return found


def _stream(channel: Channel, source: Source, entry: Entry, index: int, prefix: Prefix) -> None:
    channel.send({"file": index, "from": prefix.length})
    channel.skip(prefix.length)
    running, done = prefix.sha256, prefix.length
    with source.open(entry) as file:
        file.seek(done)
        while done < entry.size:
            chunk = min(CHUNK - done % CHUNK, entry.size - done)
            channel.send({"bytes": chunk})
            end = done + chunk
            while done < end:
                piece = file.read(min(PIECE, end - done))
                if not piece:
                    raise source.changed(entry)
                channel.write(piece)
                running.update(piece)
                done += len(piece)
            channel.send({"sha256": running.hexdigest()})
    source.check_unchanged(entry)
    source.check_hash(entry, running.hexdigest())


def _moved(
    channel: Channel,
    source: Source,
    entries: list[Entry],
    needed: dict[int, Prefix],
    stage: str,
    mover: Mover | None,
) -> None:
    """The bytes go by rsync, started by either end.

    What this end adds is their hashes, computed meanwhile.
    """
    hashes: dict[int, str] = {}
    if mover is None:
        for index in needed:
            hashes[index] = _hash(source, entries[index], channel.beat)
    else:
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool:  # it reads the same pages as rsync
            hashing = pool.submit(_hash_all, source, {index: entries[index] for index in needed}, stop)
            try:
                mover(stage, [entries[index].path for index in needed], channel.beat)
                hashes = channel.wait(hashing)
            finally:
                stop.set()
    channel.send({"moved": [[index, sha256] for index, sha256 in hashes.items()]})


def _hash_all(source: Source, entries: Mapping[int, Entry], stop: threading.Event) -> dict[int, str]:
    def check() -> None:
        if stop.is_set():
            raise CancelledError

    return {index: _hash(source, entry, check) for index, entry in entries.items()}


def _hash(source: Source, entry: Entry, beat: Callable[[], None]) -> str:
    running = hashlib.sha256()
    with source.open(entry) as file:
        while piece := file.read(PIECE):
            running.update(piece)
            beat()
    source.check_unchanged(entry)
    source.check_hash(entry, running.hexdigest())
    return running.hexdigest()
