"""Telling a process from a stranger that was given the same number.

A process is known by boot id, pid and start time (field 22 of /proc/<pid>/stat, ticks since boot; proc(5)).
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


def boot_id() -> str:
    """The kernel's random id of this boot."""
    return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold blanks and brackets
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One process, for ever: no later process has the same three values."""

    boot_id: str
    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """The identity of a process that is running, or not yet waited for. Errors: `ProcessLookupError`."""
        ticks = start_ticks(pid)
        if ticks is None:
            raise ProcessLookupError(pid)
        return cls(boot_id=boot_id(), pid=pid, start_ticks=ticks)

    def alive(self) -> bool:
        """Whether this very process runs."""
        return self.boot_id == boot_id() and start_ticks(self.pid) == self.start_ticks

    def signal_group(self, number: signal.Signals) -> bool:
        """Signal the group this process leads. False: it is gone, and nobody was signalled."""
        if not self.alive():
            return False
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True
