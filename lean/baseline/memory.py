"""The machine's memory, and whether what a server held came back."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from lean.host_facts import ask_nvidia_smi, csv_rows

RETURNED_BYTES = 256 << 20  # by which the GPU's memory may differ afterwards: other contexts come and go
UNIFIED_BYTES = 1 << 30  # and that of a host whose GPU shares its memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes: free on the host, and in use on all GPUs by everybody; None where nobody says."""

    available: int | None
    gpu_used: int | None


def read_memory() -> Memory:
    """The machine's memory now."""
    available = None
    with contextlib.suppress(OSError, LookupError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = next(line for line in lines if line.startswith("MemAvailable:")).split()[1]
        available = int(kib) << 10
    text, _ = ask_nvidia_smi(("memory.used",))
    used = [row["memory.used"] for row in csv_rows(text, ("memory.used",))]
    known = bool(used) and all(re.fullmatch(r"[0-9]+", mib) for mib in used)
    return Memory(available=available, gpu_used=sum(map(int, used)) << 20 if known else None)


def memory_returned(before: Memory, after: Memory, *, gpu: bool) -> bool:
    """Whether what a GPU held is free again; without one the memory goes with the processes.

    Where nobody says what a GPU holds (GB10: its memory is the host's), what is available there decides.
    """
    if not gpu:
        return True
    if before.gpu_used is not None and after.gpu_used is not None:
        return after.gpu_used <= before.gpu_used + RETURNED_BYTES
    if before.available is None or after.available is None:
        return False
    return after.available >= before.available - UNIFIED_BYTES
