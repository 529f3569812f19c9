"""From verified staged files to the target's name: modes, links, sync, rename."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from typing import Any

from lean.transfer.channel import Channel, ChannelError, Refused
from lean.transfer.incoming import Incoming
from lean.transfer.stage import Stage, full_disk
from lean.transfer.tree import Entry, check_loss, scan, with_folders

SYNC_ALL = 64  # from so many files on, one sync of everything is cheaper than one each


def commit(
    channel: Channel, stage: Stage, incoming: list[Incoming], tree: bool, *, keep: bool
) -> dict[str, Any]:
    """Make the staged copy the target. `keep`: a folder there must not lose what the copy does not hold."""
    for item in incoming:
        if item.entry.kind == "file" and not item.sha256:
            raise Refused("TransferError", f"{item.path} was never sent; run it again")
    entries = [item.entry for item in incoming]
    unchanged = all(item.kept and item.basis for item in incoming if item.entry.kind == "file")
    unchanged = unchanged and all(
        item.basis == _at(stage.target, item.entry) for item in incoming if item.basis
    )
    unchanged = unchanged and _same_shape(stage.target, entries)
    if unchanged:
        stage.discard()
    else:
        with contextlib.suppress(ChannelError):  # raised after the work was done
            channel.beating(_finish, stage, incoming, tree, keep)
    hashes = {item.entry.path: item.sha256 for item in incoming if item.entry.kind == "file"}
    word: dict[str, Any] = {"sha256": hashes, "unchanged": unchanged, "target": stage.target}
    with contextlib.suppress(ChannelError):  # the copy stands, whether or not the sender still hears of it
        channel.send(word)
        channel.flush()
    return word


def _at(root: str, entry: Entry) -> str:
    return os.path.join(root, entry.path) if entry.path else root


def _same_shape(target: str, entries: list[Entry]) -> bool:
    def shape(items: list[Entry]) -> set[tuple[str, str, bool, str]]:
        return {(item.path, item.kind, item.executable, item.link) for item in items}

    try:
        return os.path.lexists(target) and shape(scan(target)) == shape(with_folders(entries))
    except Refused:
        return False


def _finish(stage: Stage, incoming: list[Incoming], tree: bool, keep: bool) -> None:
    for item in incoming:
        if item.entry.kind == "file":
            _settle_file(stage, item)
    if tree:
        stage.finish_tree([item.entry for item in incoming])
        _sync(stage.data, [item for item in incoming if item.entry.kind == "file"])
        entries = [item.entry for item in incoming]
        stage.commit_tree(lambda: check_loss(stage.old, stage.target, entries) if keep else None)
    else:
        _sync(stage.folder, incoming)
        stage.commit_file()


def _settle_file(stage: Stage, item: Incoming) -> None:
    """Bring in a file found elsewhere.

    Set mode and time. A link shares both, so it is made only where they agree.
    """
    mode = stage.file_mode | (stage.folder_mode & 0o111 if item.entry.executable else 0)
    if item.kept and item.basis:
        if stat.S_IMODE(os.stat(item.basis).st_mode) == mode:
            try:
                os.link(item.basis, item.path, follow_symlinks=False)
                return
            except OSError as error:
                if full_disk(error):
                    raise
        shutil.copyfile(item.basis, item.path)
    os.chmod(item.path, mode)
    if item.entry.mtime_ns:
        os.utime(item.path, ns=(item.entry.mtime_ns, item.entry.mtime_ns))


def _sync(folder: str, items: list[Incoming]) -> None:
    if len(items) >= SYNC_ALL:
        os.sync()
        return
    folders = {os.path.dirname(item.path) for item in items} | {folder}
    for path in [item.path for item in items] + sorted(folders):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
