"""What is in a file or a tree, and whether a listing from elsewhere may be believed."""

from __future__ import annotations

import os
import stat
from dataclasses import astuple, dataclass
from typing import Any

from lean.transfer.channel import Refused


@dataclass(frozen=True, slots=True)
class Entry:
    """One name below the root; the root of a single file is the file and its path is empty.

    `kind` is `file`, `folder` or `link`; `size` in bytes; `executable` is all that travels of the mode.
    """

    path: str
    kind: str
    size: int = 0
    mtime_ns: int = 0
    executable: bool = False
    link: str = ""

    def wire(self) -> list[Any]:
        """The form in which it travels; names that are no UTF-8 travel as lone surrogates (PEP 383)."""
        return list(astuple(self))


def scan(root: str) -> list[Entry]:
    """Everything below `root`, sorted by path, links not followed; or the one file that `root` is.

    Errors: `Refused` for a name that is not there, a device, socket or pipe, a link that leaves the tree.
    """
    try:
        top = os.stat(root)
    except OSError as error:
        raise Refused("TransferError", f"cannot read {root}: {error.strerror}") from None
    if not stat.S_ISDIR(top.st_mode):
        return [_entry(root, "", top)]
    found: list[Entry] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        for name in os.listdir(os.path.join(root, folder)):
            entry = entry_of(os.path.join(root, folder, name), os.path.join(folder, name))
            found.append(entry)
            if entry.kind == "folder":
                folders.append(entry.path)
    found.sort(key=lambda entry: entry.path)
    check(found)
    return found


def with_folders(entries: list[Entry]) -> list[Entry]:
    """The entries and the folders that lie between them and the root."""
    known = {entry.path for entry in entries}
    above = {path for entry in entries for path in _parents(entry.path)} - known
    return entries + [Entry(path, "folder") for path in above]


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def entry_of(full: str, path: str) -> Entry:
    """The entry `path` for what lies at `full`, a link not followed.

    Errors: `Refused` for anything special.
    """
    return _entry(full, path, os.lstat(full))


def _entry(full: str, path: str, info: os.stat_result) -> Entry:
    if stat.S_ISDIR(info.st_mode):
        return Entry(path, "folder")
    if stat.S_ISLNK(info.st_mode):
        return Entry(path, "link", link=os.readlink(full))
    if stat.S_ISREG(info.st_mode):
        return Entry(path, "file", info.st_size, info.st_mtime_ns, bool(info.st_mode & 0o100))
    raise Refused("TransferError", f"{full} is neither file, folder nor link; leave it out")


def parse(items: list[Any]) -> list[Entry]:
    """Entries from the wire, checked. Errors: `Refused`."""
    entries = []
    for item in items:
        types = (str, str, int, int, bool, str)
        if not isinstance(item, list) or [type(value) for value in item] != list(types):
            raise Refused("TransferError", f"malformed listing: {str(item)[:80]}")
        entries.append(Entry(*item))
    check(entries)
    return entries


def check(entries: list[Entry]) -> None:
    """Refuse any listing that could write outside its root or twice to one name."""
    if [entry.path for entry in entries] == [""] and entries[0].kind == "file":
        return
    kinds: dict[str, str] = {}
    for entry in entries:
        parts = entry.path.split("/")
        if "\0" in entry.path or any(part in ("", ".", "..") for part in parts):
            raise Refused("TransferError", f"name {entry.path!r} leaves the tree; nothing was written")
        if entry.path in kinds or entry.kind not in ("file", "folder", "link") or entry.size < 0:
            raise Refused("TransferError", f"malformed listing at {entry.path!r}")
        kinds[entry.path] = entry.kind
    for entry in entries:
        above = os.path.dirname(entry.path)
        if above and kinds.get(above, "folder") != "folder":
            raise Refused("TransferError", f"name {entry.path!r} lies below a {kinds[above]}")
        if entry.kind == "link":
            _check_link(entry)


def _check_link(entry: Entry) -> None:
    """`..` may only lead, and no higher than the root.

    Then no chain of links inside the tree can leave it.
    """
    parts = entry.link.split("/")
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    if not entry.link or "\0" in entry.link or ".." in parts[up:] or entry.link.startswith("/"):
        raise Refused("TransferError", f"link {entry.path!r} -> {entry.link!r} may leave the tree")
    if up > entry.path.count("/"):
        raise Refused("TransferError", f"link {entry.path!r} -> {entry.link!r} leaves the tree")


def check_loss(folder_now: str, target: str, entries: list[Entry]) -> None:
    """Refuse when the folder, `target` or where it was put aside, holds what the copy would not."""
    coming = {entry.path for entry in with_folders(entries)}
    here = {
        os.path.relpath(os.path.join(folder, name), folder_now)
        for folder, folders, files in os.walk(folder_now)
        for name in [*folders, *files]
    }
    lost = sorted(here - coming)
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise Refused(
            "PreflightError",
            f"{target} holds {lost[0]!r}{more}, which the source does not and which would be lost; "
            "choose another target, or add --replace",
        )
