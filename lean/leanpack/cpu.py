"""The instruction set of this machine's processor, as a pack names its CPU target."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpu_isa(cpuinfo: Path = CPUINFO) -> str:
    """`x86_64-avx512`, `x86_64-avx2`, or the bare machine name where no more is known (`aarch64`)."""
    machine = platform.machine()
    if machine != "x86_64":
        return machine
    flags = _field(cpuinfo, "flags").split()
    for name, needed in (("avx512", {"avx512f", "avx512bw", "avx512vl"}), ("avx2", {"avx2", "fma"})):
        if needed <= set(flags):
            return f"{machine}-{name}"
    return machine


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """The processor's own name, or its architecture where it gives none (many aarch64 systems)."""
    return _field(cpuinfo, "model name") or platform.machine()


def _field(cpuinfo: Path, name: str) -> str:
    try:
        text = cpuinfo.read_text(errors="replace")
    except FileNotFoundError:  # not Linux
        return ""
    lines = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return next((value.strip() for key, value in lines if key.strip() == name), "")
