"""One kernel compiled for one chip: what came out of it, kept by its content."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernels.aot import StageFailed, Tools
from kernels.build import BuildFailed, build_kernel
from kernels.sass import read_sass
from kernels.spec import KernelSpec
from lean.toolchain.instructions import read_instructions
from lean.toolchain.sources import ROOT, hashed, imported
from lean.toolchain.tools import is_refusal, versions
from lean.toolchain.words import public

# Most shared memory of a block in bytes: CUDA C++ programming guide, technical specifications by capability.
SHARED_LIMITS = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_103": 227 * 1024,
    "sm_110": 227 * 1024,
    "sm_120": 99 * 1024,
    "sm_121": 99 * 1024,
}
OK, UNFIT, REFUSED, LOST = "ok", "does-not-fit", "refused", "lost"
_FORMAT = "portability-cell/v1"

Cell = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One kernel for one chip. `entry`: the file of the cache that keeps its result."""

    tools: Tools
    spec: KernelSpec
    target: str
    entry: Path | None
    cache: Path | None


def compile_cell(job: Job) -> Cell:
    """Compile one kernel and look at what came out; it is kept in the cache, a refusal too."""
    start = time.monotonic()
    try:
        built = build_kernel(job.tools, job.spec, job.target, job.cache)
    except BuildFailed as error:
        cell = _failed(error)
    else:
        used, limit = built.resources, SHARED_LIMITS[job.target]
        why = []
        if used.spill_stores or used.spill_loads:
            why.append(f"registers spill: {used.spill_stores} stores and {used.spill_loads} loads")
        if used.shared_bytes > limit:
            why.append(f"{used.shared_bytes} bytes of shared memory; a block has {limit}")
        cell = {"status": UNFIT if why else OK, "why": "; ".join(why), **asdict(used)}
        found = asdict(read_instructions(read_sass(built.sass)))
        cell |= {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}
        cell["cubin_sha256"] = hashlib.sha256(built.cubin).hexdigest()
    cell["seconds"] = round(time.monotonic() - start, 3)
    if job.entry is not None and cell["status"] != LOST:
        _keep(job.entry, cell)
    return cell


def _failed(error: BuildFailed) -> Cell:
    """The compiler's own words; one that died of a signal or ran too long is lost, not a refusal."""
    cause = error.__cause__
    stage = cause.stage if isinstance(cause, StageFailed) else ""
    status = REFUSED if is_refusal(error) else LOST
    return {"status": status, "why": public(str(cause or error)), "stage": stage}


def identity(spec: KernelSpec) -> str:
    """What decides the machine code, as text: not the kernel's name, nor its grid."""
    shapes = [(array.dtype, array.shape) for array in spec.arrays]
    about = (spec.function, shapes, spec.constants, spec.occupancy, spec.warps)
    return json.dumps(about)


def job_for(tools: Tools, spec: KernelSpec, target: str, cache: Path | None) -> Job:
    """The job of one kernel; `cache` is the folder of what was compiled before."""
    entry = None if cache is None else cache / "portability" / f"{_cache_key(tools, spec, target)}.json"
    return Job(tools=tools, spec=spec, target=target, entry=entry, cache=cache)


def _cache_key(tools: Tools, spec: KernelSpec, target: str) -> str:
    about = [_FORMAT, identity(spec), target, SHARED_LIMITS[target], *versions(tools).items()]
    about.append(sources_of(spec.function))
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def sources_of(function: str) -> dict[str, str]:
    """SHA-256, by path, of a kernel's source, of all it imports, and of what compiles and inspects it."""
    start = [ROOT / "kernels" / f"{function.split(':')[0].replace('.', '/')}.py"]
    start += [ROOT / "kernels" / f"{name}.py" for name in ("aot", "build", "signature", "sass")]
    start.append(ROOT / "lean" / "toolchain" / "instructions.py")
    return dict(hashed_once(tuple(start)))


@functools.cache
def hashed_once(start: tuple[Path, ...]) -> tuple[tuple[str, str], ...]:
    """Path and SHA-256 of these files and of all they import."""
    return tuple(hashed(imported(ROOT, start)).items())


def read_cell(entry: Path | None) -> Cell | None:
    """What the cache has; an entry that is not whole is as good as none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        if entry is not None:
            found = json.loads(entry.read_bytes())
            if found["sha256"] == _cell_sha256(found["cell"]):
                return dict(found["cell"])
    return None


def _keep(entry: Path, cell: Cell) -> None:
    """Write beside and rename. A cache that cannot be written costs time and nothing else."""
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor, staged = tempfile.mkstemp(prefix=".staged-", dir=entry.parent)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"sha256": _cell_sha256(cell), "cell": cell}, file)
        os.replace(staged, entry)


def _cell_sha256(cell: Cell) -> str:
    return hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()
