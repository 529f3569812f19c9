"""The host's end: says what it lacks, stages what comes, and remembers how to go on.

Beside a staged file lies `<name>.relay`: the version it is of, then size and sha256 of every chunk that
arrived. A later run believes as many chunks as still have theirs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lean.errors import TransferError
from lean.leanpack.snapshot import SourceKind
from lean.models.source import Listing, RemoteFile
from lean.transfer.channel import Channel, Refused

NOTES = ".relay"
PIECE = 1 << 20


class Partial:
    """One staged file. `length` bytes of it are good, of the version `version`; `running` is their hash."""

    def __init__(self, path: Path, beat: Callable[[], None]) -> None:
        self.path, self._notes = path, path.with_name(path.name + NOTES)
        self.length, self.version = 0, ""
        self.running = hashlib.sha256()
        self._accepted: list[list[Any]] = []
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            self._recall(beat)

    def _recall(self, beat: Callable[[], None]) -> None:
        """Believe as many chunks as still have their hash; a line that was torn ends the list."""
        head, *lines = self._notes.read_text(encoding="utf-8").splitlines()
        version = str(json.loads(head)["version"])
        with self.path.open("rb", buffering=0) as file:
            for line in lines:
                size, sha256 = json.loads(line)
                chunk, after, left = hashlib.sha256(), self.running.copy(), int(size)
                while left and (piece := file.read(min(PIECE, left))):
                    chunk.update(piece)
                    after.update(piece)
                    left -= len(piece)
                    beat()
                if left or chunk.hexdigest() != sha256:
                    return
                self._accepted.append([int(size), sha256])
                self.length, self.running, self.version = self.length + int(size), after, version

    def begin(self, start: int, version: str) -> None:
        """Go on at `start`: what was found good, or nothing.

        Errors: `Refused` for anything between, and when what was found is there no more.
        """
        if start not in (0, self.length):
            raise Refused(
                "TransferError", f"{self.path.name}: nobody has said that {start} bytes of it are here"
            )
        if start == 0:
            self.length, self.running, self._accepted = 0, hashlib.sha256(), []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        make = 0 if start else os.O_CREAT
        with open(os.open(self.path, os.O_WRONLY | make | os.O_NOFOLLOW, 0o600), "wb") as file:
            if os.fstat(file.fileno()).st_size < start:
                raise Refused("TransferError", f"{self.path.name}: what was staged is gone; run it again")
            file.truncate(start)
        lines = [json.dumps({"version": version}), *(json.dumps(chunk) for chunk in self._accepted)]
        self._notes.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.version = version

    def add(self, channel: Channel, size: int, sha256: str) -> None:
        """One chunk from the channel. Errors: `Refused` for bytes that arrived damaged."""
        chunk, left = hashlib.sha256(), size
        with open(os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW), "wb", buffering=0) as file:
            file.seek(self.length)
            while left:
                piece = memoryview(channel.read(left))
                chunk.update(piece)
                self.running.update(piece)
                left -= len(piece)
                while piece:
                    piece = piece[file.write(piece) :]
            if chunk.hexdigest() != sha256:
                file.truncate(self.length)
                raise Refused(
                    "TransferError",
                    f"{self.path.name}: bytes {self.length} to {self.length + size} arrived damaged; "
                    "run it again to go on",
                )
        with self._notes.open("a", encoding="utf-8") as notes:
            notes.write(json.dumps([size, sha256]) + "\n")
        self._accepted.append([size, sha256])
        self.length += size


@dataclass(slots=True, kw_only=True)
class RelaySource:
    """What the laptop offers, as a `lean.models.source.ModelSource`."""

    channel: Channel
    kind: SourceKind
    offered: Listing
    _partials: dict[str, Partial] = field(default_factory=dict)
    _answered: bool = True  # whether the laptop has heard what became of the file before

    def listing(self) -> Listing:
        """As the laptop sent it."""
        return self.offered

    def examine(self, files: list[RemoteFile], folder: Path) -> int:
        """Look at what earlier runs staged of these files; its good bytes in all."""
        self._partials = {file.path: Partial(folder / file.path, self.channel.beat) for file in files}
        return sum(partial.length for partial in self._partials.values())

    def announce(self) -> None:
        """Tell the laptop everything that is missing, and how much of each is staged."""
        known = {file.path: index for index, file in enumerate(self.offered.files)}
        found = self._partials.items()
        missing = [[known[path], partial.length, partial.version] for path, partial in found]
        self.channel.send({"missing": missing})
        self.channel.flush()

    def expect(self, files: list[RemoteFile], folder: Path) -> None:
        """`examine` and `announce`, as `fetch` asks for it."""
        self.examine(files, folder)
        self.announce()

    def download(self, listing: Listing, file: RemoteFile, folder: Path, *, force: bool) -> str | None:
        """Take one file in. `force`: what came did not have the hub's hash; once more from its start.

        Errors: `Refused` ends the relay; `TransferError` asks for the file once more, as the laptop expects.
        """
        if self._answered:
            self._answered = False
        else:
            self.channel.send({"good": not force})
        partial = self._partials[file.path]
        while True:
            head = self.channel.receive()
            if listing.files[int(head["file"])].path != file.path:
                raise Refused("TransferError", f"{file.path}: the laptop sends another file")
            if int(head["size"]) != file.size:
                raise Refused(
                    "TransferError",
                    f"{file.path}: it had {file.size} bytes and has {head['size']} now; run it again",
                )
            start = int(head["from"])
            partial.begin(start, str(head["version"]))
            if self._chunks(partial, file):  # what an earlier run staged is read again, all of it
                return partial.running.hexdigest() if start == 0 else None

    def _chunks(self, partial: Partial, file: RemoteFile) -> bool:
        """Whether the file came to its end; false when the laptop starts it anew."""
        while True:
            message = self.channel.receive()
            if "restart" in message:
                return False
            if "end" in message:
                if partial.length != file.size:
                    raise TransferError(f"{file.path}: {partial.length} of {file.size} bytes arrived")
                return True
            size = int(message["bytes"])
            if size < 1 or partial.length + size > file.size:
                raise Refused("TransferError", f"{file.path}: more bytes arrive than were announced")
            partial.add(self.channel, size, str(message["sha256"]))

    def finish(self, report: dict[str, Any]) -> None:
        """The last file is good too, and this is what became of it all."""
        if not self._answered:
            self.channel.send({"good": True})
        self.channel.send({"report": report})
        self.channel.flush()


def offered_by(channel: Channel) -> RelaySource:
    """Hear what the laptop has. Errors: those of the channel; `TransferError` for a malformed listing."""
    said: dict[str, Any] = channel.receive()["listing"]
    try:
        files = tuple(
            RemoteFile(path=str(path), size=int(size), sha256=sha256, git_sha1=git_sha1)
            for path, size, sha256, git_sha1 in said["files"]
        )
        listing = Listing(
            revision=str(said["revision"]), files=files, endpoint=said["endpoint"], client=str(said["client"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TransferError(f"the laptop's listing is malformed ({error!r})") from None
    return RelaySource(channel=channel, kind=said["kind"], offered=listing)
