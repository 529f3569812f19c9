"""The receiving end: takes the target's lock, says what is there already, writes, verifies, syncs, renames.

In the stream every chunk carries the sha256 of the whole file up to its end, so one running hash checks
each chunk and, at the last one, the file; after a cut the receiver hashes what it has once and goes on at
the last good byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lean.transfer.channel import PIECE, Channel, ChannelError, Refused
from lean.transfer.commit import commit
from lean.transfer.incoming import Incoming, plain_size
from lean.transfer.send import Mover
from lean.transfer.stage import Stage, full_disk
from lean.transfer.tree import check_loss, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the copy goes. `basis`: trees to hard-link equal files from, the target itself always among them.

    `private`: files 0600 and folders 0700, else 0644 and 0755. `who` is named to anybody else who wants the
    target. `replace`: a folder there may lose what the source does not hold.
    """

    path: str
    who: str
    private: bool = True
    replace: bool = False
    basis: tuple[str, ...] = ()


def receive(
    channel: Channel,
    target: Target,
    *,
    mover: Mover | None = None,
    on_total: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Take one copy and answer the sender; returns the same last word.

    `mover` fetches with rsync from this end where the sender offers it. Errors: `Refused` (sent to the
    other end too), `ChannelError`; the target then still is what it was.
    """
    try:
        with Stage(target.path, who=target.who, private=target.private) as stage:
            return _receive(channel, target, stage, mover, on_total)
    except Refused as error:
        _tell(channel, error)
        raise
    except (KeyError, IndexError, TypeError, ValueError) as error:
        refusal = Refused("TransferError", f"{target.path}: the sender said something malformed ({error!r})")
        _tell(channel, refusal)
        raise refusal from error
    except OSError as error:
        kind = "PreflightError" if full_disk(error) else "TransferError"
        refusal = Refused(kind, f"cannot write {error.filename or target.path}: {error.strerror}")
        _tell(channel, refusal)
        raise refusal from error


def _tell(channel: Channel, refusal: Refused) -> None:
    with contextlib.suppress(ChannelError, Refused):  # whoever refused first may be gone
        channel.send(refusal.document())
        channel.flush()


def _receive(
    channel: Channel,
    target: Target,
    stage: Stage,
    mover: Mover | None,
    on_total: Callable[[int], None] | None,
) -> dict[str, Any]:
    offer = channel.receive()
    tree, entries = bool(offer["tree"]), parse(offer["entries"])
    if on_total is not None:
        on_total(sum(entry.size for entry in entries))
    if (entries[:1] == [] or entries[0].path != "") != tree:
        raise Refused("TransferError", "malformed listing: a tree with the shape of a file")
    if os.path.lexists(stage.target) and os.path.isdir(stage.target) != tree:
        here, there = ("folder", "file") if not tree else ("file", "folder")
        raise Refused(
            "TransferError", f"{stage.target} is a {here} and the source a {there}; remove it first"
        )
    if tree and not target.replace:
        check_loss(stage.target, stage.target, entries)
    stage.prepare(entries, tree=tree)
    incoming = [Incoming(stage, target.basis, entry, channel) for entry in entries]
    _check_space(stage, incoming)
    moves = mover is not None and bool(offer["rsync"])
    have = {str(i): item.chain for i, item in enumerate(incoming) if item.chain}
    rsync = shutil.which("rsync") is not None
    channel.send({"have": have, "stage": stage.data, "rsync": rsync, "moves": moves})
    _take(channel, stage, incoming, mover if moves else None)
    return commit(channel, stage, incoming, tree, keep=not target.replace)


def _check_space(stage: Stage, incoming: list[Incoming]) -> None:
    needed = sum(item.missing for item in incoming)
    disk = os.statvfs(stage.folder)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise Refused(
            "PreflightError",
            f"{stage.parent}: {needed / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free; make room there",
        )


def _take(channel: Channel, stage: Stage, incoming: list[Incoming], mover: Mover | None) -> None:
    while True:
        message = channel.receive()
        if "end" in message:
            return
        if "need" in message:
            _make_room_for_new(incoming, message["need"])
            channel.send({"go": 1})
            channel.flush()
            if mover is not None:
                names = [incoming[index].entry.path for index in message["need"]]
                mover(stage.data, names, channel.beat)
        elif "moved" in message:
            for index, sha256 in message["moved"]:
                _verify(incoming[index], str(sha256), channel)
        else:
            item, start = incoming[message["file"]], int(message["from"])
            channel.skip(start)
            if start == item.entry.size and item.chain:
                item.keep()
            else:
                _write(channel, item, start, stage.file_mode)


def _make_room_for_new(incoming: list[Incoming], needed: list[int]) -> None:
    """Drop what is no good: rsync's quick check, by size and time, would believe a wrong staged file."""
    for index in needed:
        item = incoming[index]
        if item.basis:
            item.basis, item.chain = "", []
        elif item.chain and item.chain[-1][0] == item.entry.size:
            os.unlink(item.path)
            item.chain = []


def _write(channel: Channel, item: Incoming, start: int, mode: int) -> None:
    running, done = item.begin(start), start
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(item.path, flags, mode), "wb", buffering=0) as file:
        file.truncate(start)
        file.seek(start)
        while done < item.entry.size:
            chunk = int(channel.receive()["bytes"])
            end = done + chunk
            if chunk < 1 or end > item.entry.size:
                raise Refused("TransferError", f"{item.path}: more bytes arrive than were announced")
            good = done
            while done < end:
                piece = memoryview(channel.read(end - done))
                running.update(piece)
                done += len(piece)
                while piece:
                    piece = piece[file.write(piece) :]
            if channel.receive()["sha256"] != running.hexdigest():
                file.truncate(good)
                raise Refused(
                    "TransferError", f"{item.path}: bytes {good} to {end} arrived damaged; run it again"
                )
    item.sha256 = running.hexdigest()


def _verify(item: Incoming, sha256: str, channel: Channel) -> None:
    """Hash what rsync left and compare it with what the sender read."""
    if plain_size(item.path) != item.entry.size:
        raise Refused(
            "TransferError", f"{item.path}: rsync left no file of {item.entry.size} bytes; run it again"
        )
    running = hashlib.sha256()
    with open(item.path, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            running.update(piece)
            channel.beat()
    if running.hexdigest() != sha256:
        os.unlink(item.path)
        raise Refused(
            "TransferError", f"{item.path}: arrived with another sha256 than was sent; run it again"
        )
    item.sha256 = sha256
