"""Telling one process from another that got the same pid later."""

from __future__ import annotations

import subprocess
from pathlib import Path


def process_identity(pid: int) -> str | None:
    """A text that only this very process has: boot and start time. None when it has ended (a zombie has).

    Linux reads /proc (proc(5), field 22 of stat); elsewhere `ps` tells the start time to the second.
    """
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        return _identity_by_ps(pid)
    try:
        fields = stat.read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, started = fields[0], fields[19]
    if state in "ZX":
        return None
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{started}"


def _identity_by_ps(pid: int) -> str | None:
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    state, _, started = answer.stdout.strip().partition(" ")
    return started.strip() if started and not state.startswith("Z") else None
