"""rsync as the mover of bytes.

Which flags the local one has, its child process, and what its exit code means.
"""

from __future__ import annotations

import functools
import os
import re
import select
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from lean.errors import LeanError, PreflightError, TransferError, UnreachableError
from lean.transfer.channel import BEAT_S
from lean.transfer.stage import PARTIAL
from remote.ssh.connection import HostConnection
from remote.ssh.openssh import error_in
from remote.transfer.far_end import quiet_environment

NEEDED = ("--partial-dir", "--timeout", "--files-from", "--from0")
LINK_CODES = (10, 12, 30, 35, 255)  # socket I/O, protocol stream, timeouts, ssh itself: rsync(1), EXIT VALUES
_PROGRESS = re.compile(rb"\s*([\d,.]+)\s+\d+%\s")
_LITERAL = re.compile(r"^(?:Literal data|Unmatched data): ([\d,.]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rsync:
    """The local rsync. `protects`: it can pass any path to the other side unharmed by the shell there."""

    program: str
    protects: bool
    reports: bool
    counts: bool


@functools.cache
def local_rsync() -> Rsync | None:
    """What this machine has, by its own help text; None without one that can resume."""
    program = shutil.which("rsync")
    if program is None:
        return None

    answer = subprocess.run(
        [program, "--help"], capture_output=True, text=True, stdin=subprocess.DEVNULL, errors="replace"
    )
    flags = answer.stdout + answer.stderr
    if not all(flag in flags for flag in NEEDED):
        return None
    return Rsync(
        program=program,
        protects="--protect-args" in flags or "--secluded-args" in flags,
        reports="--info" in flags,
        counts="--stats" in flags,
    )


class RsyncMover:
    """Moves the named files between `here` and `there` (an absolute path on the host).

    See `lean.transfer.send.Mover`.

    `moved` is the number of bytes that crossed as they are, after the deltas against a partial file.
    """

    def __init__(
        self,
        connection: HostConnection,
        rsync: Rsync,
        *,
        source: str,
        push: bool,
        on_count: Callable[[int], None] | None = None,
    ) -> None:
        self._connection, self._rsync, self._source, self._push = connection, rsync, source, push
        self._on_count = on_count
        self.moved = 0
        self.used = False

    def usable(self, path: str) -> bool:
        """Whether `path` reaches the other side unharmed."""
        return self._rsync.protects or shlex.quote(path) == path

    def __call__(self, stage: str, names: list[str], beat: Callable[[], None]) -> None:
        """Run it once.

        Errors: `LeanError` of the right kind; what arrived stays in the stage for the next attempt.
        """
        self.used = True
        with tempfile.TemporaryFile() as stderr, tempfile.TemporaryFile() as listing:
            if names != [""]:
                listing.write(b"\0".join(name.encode("utf-8", "surrogateescape") for name in names))
                listing.seek(0)
            child = subprocess.Popen(
                self._argv(stage, names),
                stdin=listing,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=quiet_environment(),
                start_new_session=True,
            )
            report = self._follow(child, beat)
            stderr.seek(0)
            if child.returncode:
                raise self._error(child.returncode, stderr)
        found = _LITERAL.search(report)
        self.moved = int(re.sub(r"\D", "", found[1])) if found else 0

    def _argv(self, stage: str, names: list[str]) -> list[str]:
        resolved = self._connection.resolved
        shell = shlex.join(self._connection.openssh("rsync"))
        stall = max(1, round(self._connection.settings.stall_timeout))
        argv = [self._rsync.program, "-t", f"--partial-dir={PARTIAL}", f"--timeout={stall}", "-e", shell]
        argv += ["-s"] if self._rsync.protects else []
        argv += ["--info=progress2", "--outbuf=L"] if self._rsync.reports else []
        argv += ["--stats"] if self._rsync.counts else []
        slash = "/"
        if names == [""]:
            argv, slash = [*argv, "-L"], ""
        else:
            argv += ["--files-from=-", "--from0"]
        host = f"[{resolved.destination}]" if ":" in resolved.destination else resolved.destination
        if self._push:
            return [*argv, "--", f"{self._source}{slash}", f"{host}:{stage}{slash}"]
        return [*argv, "--", f"{host}:{self._source}{slash}", f"{stage}{slash}"]

    def _follow(self, child: subprocess.Popen[bytes], beat: Callable[[], None]) -> str:
        """Read its progress to the end; the pipe's end is the child's. Returns what it text."""
        assert child.stdout is not None
        text = b""
        try:
            with child.stdout as pipe:
                while True:
                    beat()
                    if not select.select([pipe], [], [], BEAT_S / 2)[0]:
                        continue
                    piece = os.read(pipe.fileno(), 1 << 16)
                    if not piece:
                        break
                    text = (text + piece)[-(1 << 16) :]
                    self._report(piece)
            child.wait()
        except BaseException:
            child.terminate()  # lets it keep its partial file
            child.wait()
            raise
        return text.decode(errors="replace")

    def _report(self, piece: bytes) -> None:
        found = _PROGRESS.findall(piece)
        if found and self._on_count is not None:
            self._on_count(int(re.sub(rb"\D", b"", found[-1])))

    def _error(self, code: int, stderr: IO[bytes]) -> LeanError:
        text = stderr.read().decode(errors="replace").strip()
        first = text.splitlines()[0] if text else "no reason given"
        name = self._connection.name
        if "No space left" in text or "Disk quota" in text:
            return PreflightError(
                f"{name}: the disk filled up while rsync wrote ({first}); make room, then run it again"
            )
        if code in LINK_CODES:
            return error_in(text, f"{name}: {self._connection.resolved.address}") or UnreachableError(
                f"{name}: rsync lost the link ({first}); the target is as it was, run it again to go on"
            )
        return TransferError(f"{name}: rsync ended with {code} ({first}); nothing was replaced")
