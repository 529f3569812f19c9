"""One entry on its way in: what of it is here already, and the running hash from which it goes on."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Any

from lean.transfer.channel import PIECE, Channel, Refused
from lean.transfer.send import CHUNK
from lean.transfer.stage import Stage
from lean.transfer.tree import Entry

BLOCK = 4096  # what the space check rounds every file up to


class Incoming:
    """`chain` holds (length, sha256 of so much) of what is staged, or of the equally long file at `basis`.

    `sha256` is empty until the whole file is known to be good; `kept`: it was here all along.
    """

    def __init__(self, stage: Stage, basis: tuple[str, ...], entry: Entry, channel: Channel) -> None:
        self.entry, self.path = entry, stage.place(entry)
        self.sha256, self.kept = "", False
        self.chain: list[tuple[int, str]] = []
        self._prefixes: dict[int, Any] = {}
        self.basis = ""
        if entry.kind != "file":
            return
        if plain_size(self.path) in range(1, entry.size + 1):
            self._read_chain(self.path, channel)
            return
        for root in (stage.target, *basis):
            path = os.path.join(root, entry.path) if entry.path else root
            if plain_size(path) == entry.size and not _through_link(root, entry.path):
                self.basis = path
                self._read_chain(path, channel)
                self.chain = self.chain[-1:]
                return

    def _read_chain(self, path: str, channel: Channel) -> None:
        running, done = hashlib.sha256(), 0
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(min(PIECE, CHUNK - done % CHUNK)):
                running.update(piece)
                done += len(piece)
                if done % CHUNK == 0:
                    self._mark(done, running)
                channel.beat()
        if done % CHUNK or not done:
            self._mark(done, running)

    def _mark(self, length: int, running: Any) -> None:
        self.chain.append((length, running.hexdigest()))
        self._prefixes[length] = running.copy()

    @property
    def missing(self) -> int:
        """Bytes that still have to be written, rounded up to blocks; nothing for a file found elsewhere."""
        have = self.chain[-1][0] if self.chain else 0
        return -(-(self.entry.size - have) // BLOCK) * BLOCK if self.entry.kind == "file" else 0

    def begin(self, length: int) -> Any:
        """The running hash of the first `length` bytes, which both ends agree on."""
        if length == 0:
            return hashlib.sha256()
        if length not in self._prefixes or (self.basis and length != self.entry.size):
            raise Refused(
                "TransferError", f"malformed answer: nobody said that {length} bytes of it are here"
            )
        return self._prefixes[length]

    def keep(self) -> None:
        """The whole file is here already, staged or in a basis."""
        self.kept = True
        self.sha256 = self.begin(self.entry.size).hexdigest()


def plain_size(path: str) -> int:
    """Size of a regular file, -1 for anything else."""
    try:
        info = os.lstat(path)
    except OSError:
        return -1
    return info.st_size if stat.S_ISREG(info.st_mode) else -1


def _through_link(root: str, path: str) -> bool:
    parts = path.split("/")[:-1]
    return any(os.path.islink(os.path.join(root, *parts[: i + 1])) for i in range(len(parts)))
