"""Where a copy stands until it is whole.

`.<name>.lean-part/` beside the target, with the lock that guards it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from types import TracebackType

from lean.transfer.channel import Refused
from lean.transfer.tree import Entry

PARTIAL = ".lean-partial"  # rsync's --partial-dir inside the stage
STRAY = re.compile(r"\.(.+)\.[A-Za-z0-9]{6}")  # what a killed rsync receiver leaves of `name`


class Stage:
    """Context manager holding the target's lock.

    `data` is the staged file or tree, `old` the tree being replaced.

    The lock is an flock on the stage folder itself, so a killed holder leaves none. Errors: `Refused`
    naming the holder when somebody else is writing the target.
    """

    def __init__(self, target: str, *, who: str, private: bool) -> None:
        self.target = os.path.normpath(target)
        if not os.path.isabs(target) or self.target == "/":
            raise Refused("TransferError", f"{target!r} is not an absolute path of a file or folder")
        self.parent, name = os.path.split(self.target)
        self.folder = os.path.join(self.parent, f".{name}.lean-part")
        self.data, self.old = os.path.join(self.folder, "data"), os.path.join(self.folder, "old")
        self.folder_mode, self.file_mode = (0o700, 0o600) if private else (0o755, 0o644)
        self._who = who
        self._descriptor = -1

    def __enter__(self) -> Stage:
        os.makedirs(self.parent, mode=self.folder_mode, exist_ok=True)
        while self._descriptor < 0:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.folder, mode=0o700)
            with contextlib.suppress(FileNotFoundError):  # the holder before us finished and removed it
                self._descriptor = self._lock()
        try:
            with contextlib.suppress(OSError):
                self._write_holder()
            if os.path.lexists(self.old) and not os.path.lexists(self.target):
                os.rename(self.old, self.target)  # a swap was cut in half
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.folder, "holder"))
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)  # stays while it holds something to resume from
        os.close(self._descriptor)

    def _lock(self) -> int:
        """The locked descriptor, or -1 when the folder was replaced meanwhile."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(self.folder)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise Refused(
                "PreflightError",
                f"{self.target} is being written by {self._holder()}; wait for it or stop it",
            ) from None
        except FileNotFoundError:
            pass  # whoever held it removed the folder meanwhile: the lock is on nothing, so try again
        os.close(descriptor)
        return -1

    def _holder(self) -> str:
        """Who holds the lock, in words. A new holder needs a moment to write over what a dead one left."""
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                with open(os.path.join(self.folder, "holder"), encoding="utf-8", errors="replace") as file:
                    text = file.read(400)
                found = re.search(r" \(pid (\d+)\) since ", text)
                if found is not None and _runs(int(found[1])):
                    return text
            time.sleep(0.02)
        return "another transfer"

    def _write_holder(self) -> None:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with open(os.path.join(self.folder, "holder"), "w", encoding="utf-8") as file:
            file.write(f"{self._who} (pid {os.getpid()}) since {since}")

    def place(self, entry: Entry) -> str:
        """Where the staged copy of an entry lies."""
        return os.path.join(self.data, entry.path) if entry.path else self.data

    def prepare(self, entries: list[Entry], *, tree: bool) -> None:
        """Make the folders; drop whatever an earlier attempt staged that is not in the listing."""
        self._drop_shared()
        if tree != os.path.isdir(self.data) and os.path.lexists(self.data):
            _remove(self.data)
        if tree:
            os.makedirs(self.data, mode=self.folder_mode, exist_ok=True)
        self._adopt_strays(entries)
        kinds = {self.place(entry): entry.kind for entry in entries}
        if tree:
            self._drop_unlisted(kinds)
        for entry in entries:
            folder = self.place(entry) if entry.kind == "folder" else os.path.dirname(self.place(entry))
            os.makedirs(folder, mode=self.folder_mode, exist_ok=True)

    def finish_tree(self, entries: list[Entry]) -> None:
        """Links, modes, and nothing else: after it the staged tree holds exactly the listing."""
        self._drop_unlisted({self.place(entry): entry.kind for entry in entries}, partials=True)
        for entry in entries:
            if entry.kind == "link":
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.place(entry))
                os.symlink(entry.link, self.place(entry))

    def commit_file(self) -> None:
        """Give the staged, synced file its name."""
        os.replace(self.data, self.target)
        self._settle()

    def commit_tree(self, check: Callable[[], None]) -> None:
        """Swap the staged, synced tree in; a crash between the renames is mended by the next transfer.

        `check` looks at what was put aside in `old` and may refuse; it then is the target again.
        """
        if os.path.lexists(self.old):
            _remove(self.old)
        if os.path.lexists(self.target):
            os.rename(self.target, self.old)
            try:
                check()
            except BaseException:
                os.rename(self.old, self.target)
                raise
        os.rename(self.data, self.target)
        self._settle()

    def _settle(self) -> None:
        descriptor = os.open(self.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        for name in os.listdir(self.folder):
            if name != "holder":
                _remove(os.path.join(self.folder, name))

    def discard(self) -> None:
        """Drop everything staged; there is nothing to resume."""
        for path in (self.data, os.path.join(self.folder, PARTIAL)):
            if os.path.lexists(path):
                _remove(path)

    def _drop_shared(self) -> None:
        """An attempt cut just before its rename left links, whose files are also those of a good copy."""
        for folder, folders, files in os.walk(self.folder):
            for path in [os.path.join(folder, name) for name in [*folders, *files]]:
                info = os.lstat(path)
                if stat.S_ISLNK(info.st_mode) or (stat.S_ISREG(info.st_mode) and info.st_nlink > 1):
                    os.unlink(path)
            folders[:] = [name for name in folders if os.path.join(folder, name) != self.old]

    def _adopt_strays(self, entries: list[Entry]) -> None:
        """A killed rsync leaves `.name.XXXXXX`.

        As its partial file the next rsync sends only what is missing.
        """
        wanted = {self.place(entry) for entry in entries if entry.kind == "file"}
        for folder in {os.path.dirname(path) for path in wanted}:
            for name in os.listdir(folder) if os.path.isdir(folder) else ():
                stray, found = os.path.join(folder, name), STRAY.fullmatch(name)
                if found is None or stray in wanted or os.path.join(folder, found[1]) not in wanted:
                    continue
                partial = os.path.join(folder, PARTIAL, found[1])
                os.makedirs(os.path.dirname(partial), mode=0o700, exist_ok=True)
                if not os.path.exists(partial) or os.path.getsize(partial) < os.path.getsize(stray):
                    os.replace(stray, partial)

    def _drop_unlisted(self, kinds: dict[str, str], *, partials: bool = False) -> None:
        listed = set(kinds)
        for path in kinds:
            while (path := os.path.dirname(path)).startswith(self.data):
                listed.add(path)
        for folder, folders, files in os.walk(self.data):
            for name in [*folders, *files]:
                path = os.path.join(folder, name)
                folder_wanted = kinds.get(path, "folder" if path in listed else "") == "folder"
                is_folder = os.path.isdir(path) and not os.path.islink(path)
                if name == PARTIAL and not partials and path not in listed:
                    continue
                if path not in listed or folder_wanted != is_folder:
                    _remove(path)
            folders[:] = [
                name for name in folders if os.path.isdir(os.path.join(folder, name)) and name != PARTIAL
            ]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return True


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def full_disk(error: OSError) -> bool:
    """Whether it failed for want of space."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
