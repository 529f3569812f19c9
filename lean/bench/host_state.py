"""Clocks and throttling of the machine, read before and after a run. A throttled run does not count.

Standard library only. A GPU's counters of time spent slowed down are compared, so a slow-down in the middle
of a run shows although it is over at the end. A CPU's counters are the kernel's per-core throttle counts (x86
only).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lean.host_facts import ask_nvidia_smi, csv_rows

# Bits of clocks_event_reasons.active that mean forced slow-down. Source: nvml.h, nvmlClocksEventReason*.
_SLOWDOWN_BITS = {
    0x08: "hardware slow-down",
    0x20: "software thermal slow-down",
    0x40: "hardware thermal slow-down",
    0x80: "hardware power brake",
}
_COUNTERS = {
    "sw_thermal_slowdown": "software thermal slow-down",
    "hw_thermal_slowdown": "hardware thermal slow-down",
    "hw_power_brake_slowdown": "hardware power brake",
}
_FIELDS = (
    "name",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "temperature.gpu",
    "power.draw",
    "power.limit",
    "power.default_limit",
    "clocks_event_reasons.active",
    "clocks_event_reasons_counters.sw_power_cap",
    *(f"clocks_event_reasons_counters.{name}" for name in _COUNTERS),
    "memory.used",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """One GPU as nvidia-smi reports it; None where it says N/A.

    Counters are microseconds since the driver loaded. `memory_used_mib`: of everybody on the GPU, contexts
    included; None on chips whose memory is the host's own.
    """

    name: str
    sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    max_sm_clock_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    power_limit_w: float | None
    default_power_limit_w: float | None
    event_reasons: int | None
    power_cap_us: float | None
    slowdown_us: dict[str, float]
    memory_used_mib: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """One reading.

    `throttle_counts` are the CPU's events per counter since boot, empty where the kernel has none.
    """

    at_utc: str
    cpu_mhz_min: float | None
    cpu_mhz_mean: float | None
    cpus: int
    load_1min: float | None
    throttle_counts: dict[str, int]
    gpus: tuple[GpuState, ...]
    unread: tuple[str, ...]


def read_host_state(root: Path = Path("/")) -> HostState:
    """Read the machine.

    What cannot be read is named in `unread`, never guessed. `root` is where /proc and /sys are.
    """
    mhz = _cpu_mhz(root)
    gpus, gpu_problem = ask_nvidia_smi(_FIELDS)
    counts = _throttle_counts(root)
    problems = {
        "CPU clock (no 'cpu MHz' and no cpufreq)": not mhz,
        "CPU throttle counts (no thermal_throttle in /sys)": not counts,
        f"GPU state ({gpu_problem})": gpu_problem is not None,
    }
    return HostState(
        at_utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
        cpu_mhz_min=min(mhz) if mhz else None,
        cpu_mhz_mean=sum(mhz) / len(mhz) if mhz else None,
        cpus=len(mhz) or os.cpu_count() or 1,
        load_1min=_load(root),
        throttle_counts=counts,
        gpus=parse_gpu_states(gpus),
        unread=tuple(problem for problem, holds in problems.items() if holds),
    )


def throttle_reasons(before: HostState, after: HostState) -> tuple[str, ...]:
    """Why the machine was slower than it can be between two readings; empty when nothing says so."""
    return tuple(_cpu_reasons(before, after)) + tuple(_gpu_reasons(before, after))


def host_notes(before: HostState, after: HostState) -> tuple[str, ...]:
    """What a reader should know that does not invalidate a run: other load, power limits, gaps."""
    notes = [f"not readable here: {name}" for name in after.unread]
    if before.load_1min is not None and before.load_1min > before.cpus:
        notes.append(f"busy machine: load {before.load_1min:g} on {before.cpus} processors before the run")
    for index, gpu in enumerate(after.gpus):
        limit, default = gpu.power_limit_w, gpu.default_power_limit_w
        if limit is not None and default is not None and limit < default:
            notes.append(f"GPU {index}: power limit lowered to {limit:g} W (default {default:g} W)")
        was = before.gpus[index].power_cap_us if index < len(before.gpus) else None
        if was is not None and gpu.power_cap_us is not None and gpu.power_cap_us > was:
            notes.append(
                f"GPU {index}: at its power limit for {(gpu.power_cap_us - was) / 1e6:.3f} s of the run"
            )
    return tuple(notes)


def _cpu_reasons(before: HostState, after: HostState) -> Iterator[str]:
    for name, count in sorted(after.throttle_counts.items()):
        more = count - before.throttle_counts.get(name, count)
        if more > 0:
            yield f"throttled: {name} rose by {more} during the run; let the machine cool and run again"


def _gpu_reasons(before: HostState, after: HostState) -> Iterator[str]:
    if len(before.gpus) != len(after.gpus):
        yield f"throttle state unknown: {len(before.gpus)} GPUs before the run, {len(after.gpus)} after"
        return
    for index, (was, now) in enumerate(zip(before.gpus, after.gpus, strict=True)):
        for when, state in (("before", was), ("after", now)):
            active = [text for bit, text in _SLOWDOWN_BITS.items() if (state.event_reasons or 0) & bit]
            if active:
                yield f"throttled: GPU {index} {', '.join(active)} {when} the run; let it cool and run again"
        for name, text in _COUNTERS.items():
            more = now.slowdown_us.get(name, 0.0) - was.slowdown_us.get(name, now.slowdown_us.get(name, 0.0))
            if more > 0:
                yield f"throttled: GPU {index} {text} for {more / 1e6:.3f} s during the run"


def _cpu_mhz(root: Path) -> tuple[float, ...]:
    found = re.findall(r"^cpu MHz\s*:\s*([0-9.]+)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    if found:
        return tuple(map(float, found))
    # aarch64 has cpufreq only, in kHz
    files = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    return tuple(float(text) / 1e3 for text in map(_text, files) if text.strip().isdigit())


def _load(root: Path) -> float | None:
    fields = _text(root / "proc/loadavg").split()
    return float(fields[0]) if fields else None


def _throttle_counts(root: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for file in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")):
        text = _text(file).strip()
        # A package's count is the same on each of its cores, so only cores tell places apart.
        if text.isdigit():
            name = file.name if file.name.startswith("package") else f"{file.parts[-3]} {file.name}"
            counts[name] = max(int(text), counts.get(name, 0))
    return counts


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # absent on this kernel or closed to this user: the reading names it as unread
        return ""


def parse_gpu_states(text: str) -> tuple[GpuState, ...]:
    """GPU states from nvidia-smi's CSV; `[N/A]` and `[Not Supported]` become None."""
    return tuple(map(_gpu, csv_rows(text, _FIELDS)))


def _gpu(row: dict[str, str]) -> GpuState:
    counters = {name: _number(row[f"clocks_event_reasons_counters.{name}"]) for name in _COUNTERS}
    reasons = row["clocks_event_reasons.active"]
    return GpuState(
        name=row["name"],
        sm_clock_mhz=_number(row["clocks.sm"]),
        memory_clock_mhz=_number(row["clocks.mem"]),
        max_sm_clock_mhz=_number(row["clocks.max.sm"]),
        temperature_c=_number(row["temperature.gpu"]),
        power_w=_number(row["power.draw"]),
        power_limit_w=_number(row["power.limit"]),
        default_power_limit_w=_number(row["power.default_limit"]),
        event_reasons=int(reasons, 16) if re.fullmatch(r"0x[0-9a-fA-F]+", reasons) else None,
        power_cap_us=_number(row["clocks_event_reasons_counters.sw_power_cap"]),
        slowdown_us={name: value for name, value in counters.items() if value is not None},
        memory_used_mib=_number(row["memory.used"]),
    )


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text) else None
