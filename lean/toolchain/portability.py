"""Every kernel of a geometry compiled for many chips from the same source: what comes out, or why not.

The count of sources that need no change is the project's retargeting figure (docs/retargeting.md).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernels.aot import StageFailed, Tools
from kernels.build import BuildFailed, build_kernel, tool_versions
from kernels.sass import read_sass
from kernels.spec import KernelSpec
from kernels.tiles import TUNING
from lean.errors import UsageError
from lean.host_facts import host_facts
from lean.toolchain.chain import find_tools
from lean.toolchain.instructions import read_instructions
from lean.toolchain.shapes import specs_of
from lean.toolchain.sources import ROOT, imported
from lean.toolchain.workers import Lost, run_jobs

SCHEMA = "portability/v1"
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
LIMIT_SECONDS = 120.0
OK, UNFIT, REFUSED, LOST = "ok", "does-not-fit", "refused", "lost"
ABOUT = (
    "Every kernel of a geometry compiled ahead of time, from unchanged source, for each chip. status: ok = "
    "compiled, no register spills, shared memory within the chip's limit of a block; does-not-fit = "
    "compiled, but `why` says what is too much; refused = the compiler said no, its words in `why`; lost = "
    "the compiler crashed or ran out of time. Nothing ran: this is no proof of results or speed. Sizes are "
    "bytes, times seconds; registers are a thread's, shared memory a block's, widest_load a thread's."
)

Cell = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to compile. `cache`: folder of what was compiled before; None compiles all of it.

    `seconds`: the limit of one compile; `workers`: compiles at a time.
    """

    sizes: str = "4b"
    targets: tuple[str, ...] = tuple(SHARED_LIMITS)
    cache: Path | None = None
    workers: int = 2
    seconds: float = LIMIT_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One kernel for one chip. `entry`: the file of the cache that keeps its result."""

    tools: Tools
    spec: KernelSpec
    target: str
    entry: Path | None
    cache: Path | None


def portability(
    options: Options, say: Say, compile_cell: Callable[[Job], Cell] | None = None
) -> dict[str, Any]:
    """Compile what is not in the cache, and return the document, which `ABOUT` describes.

    `compile_cell` is what a worker does with a job: this module's `compile_cell` by default. Errors:
    `UsageError` for an unknown chip or geometry, `PreflightError` for a missing tool; no cell's failure is
    one.
    """
    check_targets(options.targets)
    start, busy = time.monotonic(), _cpu_seconds()
    tools = find_tools()
    specs = {target: specs_of(options.sizes, target) for target in options.targets}
    jobs = _distinct(tools, specs, options)
    cells = {key: cell for key, job in jobs.items() if (cell := _read(job.entry)) is not None}
    known = len(cells)
    todo = [key for key in jobs if key not in cells]
    say(f"{len(jobs)} kernels to compile, {known} of them are in the cache; {options.workers} at a time")

    def finished(index: int, found: Cell | Lost) -> None:
        job = jobs[todo[index]]
        cells[todo[index]] = _settled(found, job)
        say(f"{len(cells)}/{len(jobs)} {job.target} {job.spec.name}: {_line(cells[todo[index]])}")

    run_jobs(
        compile_cell or globals()["compile_cell"],
        [jobs[key] for key in todo],
        workers=options.workers,
        seconds=options.seconds,
        finished=finished,
    )
    document = _document(options, tools, specs, cells)
    return document | {
        "compiled": len(todo),
        "from_cache": known,
        "seconds": round(time.monotonic() - start, 3),
        "cpu_seconds": round(_cpu_seconds() - busy, 3),
    }


def _cpu_seconds() -> float:
    """Of this process and of all it started: where others use the machine too, the truer cost."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def check_targets(targets: Sequence[str]) -> None:
    """Errors: `UsageError` naming the chips whose limits are not known here, or that there are none."""
    unknown = [target for target in targets if target not in SHARED_LIMITS]
    if unknown or not targets:
        named = ", ".join(unknown) or "nothing named"
        raise UsageError(f"--target: {named}; expected some of {', '.join(SHARED_LIMITS)}")


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
    code = cause.exit_code if isinstance(cause, StageFailed) else None
    stage = cause.stage if isinstance(cause, StageFailed) else ""
    ran_on = stage != "bytecode" and code is None
    lost = ran_on or (code is not None and code < 0)
    return {"status": LOST if lost else REFUSED, "why": str(cause or error), "stage": stage}


def _settled(found: Cell | Lost, job: Job) -> Cell:
    if isinstance(found, Lost):
        reason = f"compiling {job.spec.name} for {job.target}: {found.reason}"
        return {"status": LOST, "why": reason, "seconds": found.seconds}
    return found


# One job for all kernels that are the same.


def identity(spec: KernelSpec) -> str:
    """What decides the machine code, as text: not the kernel's name, nor its grid."""
    shapes = [(array.dtype, array.shape) for array in spec.arrays]
    about = (spec.function, shapes, spec.constants, spec.occupancy, spec.warps)
    return json.dumps(about)


def _distinct(
    tools: Tools, specs: Mapping[str, Sequence[KernelSpec]], options: Options
) -> dict[tuple[str, str], Job]:
    """One job for each chip and identity."""
    jobs: dict[tuple[str, str], Job] = {}
    for target, kernels in specs.items():
        for spec in kernels:
            entry = None
            if options.cache is not None:
                entry = options.cache / "portability" / f"{_cache_key(tools, spec, target)}.json"
            job = Job(tools=tools, spec=spec, target=target, entry=entry, cache=options.cache)
            jobs.setdefault((target, identity(spec)), job)
    return jobs


def _cache_key(tools: Tools, spec: KernelSpec, target: str) -> str:
    about = [SCHEMA, identity(spec), target, SHARED_LIMITS[target], *versions(tools).items()]
    about.append(source_sha256(spec.function.split(":")[0]))
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


@functools.cache
def source_sha256(module: str) -> str:
    """Of a kernel's source, of all it imports, and of what compiles and inspects it."""
    start = [ROOT / "kernels" / f"{module.replace('.', '/')}.py"]
    start += [ROOT / "kernels" / f"{name}.py" for name in ("aot", "build", "signature", "sass")]
    start.append(ROOT / "lean" / "toolchain" / "instructions.py")
    return _digest(imported(ROOT, start))


@functools.cache
def _digest(paths: tuple[Path, ...]) -> str:
    found = hashlib.sha256()
    for path in paths:
        data = path.read_bytes()
        found.update(f"{path.relative_to(ROOT).as_posix()} {len(data)}\n".encode() + data)
    return found.hexdigest()


def versions(tools: Tools) -> dict[str, str]:
    """Of the front end and of each tool behind it."""
    return {"cuda-tile": importlib.metadata.version("cuda-tile"), **tool_versions(tools)}


def _read(entry: Path | None) -> Cell | None:
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


# The document.


def _document(
    options: Options,
    tools: Tools,
    specs: Mapping[str, Sequence[KernelSpec]],
    cells: Mapping[tuple[str, str], Cell],
) -> dict[str, Any]:
    kernels: dict[str, dict[str, Any]] = {}
    for target, found in specs.items():
        for spec in found:
            row = kernels.setdefault(spec.name, {"kernel": spec.name, "function": spec.function, "cells": {}})
            row["cells"][target] = cells[target, identity(spec)]
    rows = list(kernels.values())
    functions = sorted({row["function"] for row in rows})
    return {
        "schema": SCHEMA,
        "about": ABOUT,
        "sizes": options.sizes,
        "tools": versions(tools),
        "machine": _machine(),
        "workers": options.workers,
        "sources": {name: source_sha256(name) for name in sorted({f.split(":")[0] for f in functions})},
        "targets": [_chip(target, rows) for target in options.targets],
        "functions": [_function(name, rows, options.targets) for name in functions],
        "figure": _figure(rows, functions, options.targets),
        "distinct": len(cells),
        "kernels": rows,
    }


def _machine() -> dict[str, Any]:
    facts = host_facts()
    return {name: facts[name] for name in ("host", "cpu", "gpus", "python")} | {
        "arch": facts["system"]["arch"]
    }


def _chip(target: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One chip in short."""
    cells = [row["cells"][target] for row in rows if target in row["cells"]]
    compiled = [cell for cell in cells if cell["status"] in (OK, UNFIT)]
    counts = Counter(cell["status"] for cell in cells)
    return {
        "target": target,
        "tiles": "tuning file" if (TUNING / f"{target}.json").is_file() else "default rules",
        "shared_limit": SHARED_LIMITS[target],
        **{status: counts[status] for status in (OK, UNFIT, REFUSED, LOST)},
        "spilling": sum(cell["spill_stores"] + cell["spill_loads"] > 0 for cell in compiled),
        "too_much_shared": sum(cell["shared_bytes"] > SHARED_LIMITS[target] for cell in compiled),
        "most_registers": max((cell["registers"] for cell in compiled), default=None),
        "most_shared_bytes": max((cell["shared_bytes"] for cell in compiled), default=None),
        "matrix": sorted({family for cell in compiled for family in cell["matrix"]}),
        "loads": sorted({kind for cell in compiled for kind in cell["loads"]}),
        "widest_load": max((cell["widest_load"] for cell in compiled), default=None),
    }


def _function(name: str, rows: Sequence[Mapping[str, Any]], targets: Sequence[str]) -> dict[str, Any]:
    """One kernel function: on which chips all its kernels compile, and on which they also fit."""

    def all_of(target: str, *wanted: str) -> bool:
        cells = [row["cells"][target] for row in rows if row["function"] == name and target in row["cells"]]
        return bool(cells) and all(cell["status"] in wanted for cell in cells)

    return {
        "function": name,
        "compiles": [target for target in targets if all_of(target, OK, UNFIT)],
        "fits": [target for target in targets if all_of(target, OK)],
    }


def _figure(
    rows: Sequence[Mapping[str, Any]], functions: Sequence[str], targets: Sequence[str]
) -> dict[str, Any]:
    """How many unchanged sources serve every chip: files of source, and kernel functions in them."""
    by_name = {name: _function(name, rows, targets) for name in functions}
    files = sorted({name.split(":")[0] for name in functions})

    def everywhere(kind: str, names: Sequence[str]) -> bool:
        return all(by_name[name][kind] == list(targets) for name in names)

    within = {file: [name for name in functions if name.startswith(f"{file}:")] for file in files}
    return {
        "chips": len(targets),
        "files": len(files),
        "files_that_compile_everywhere": sum(everywhere("compiles", names) for names in within.values()),
        "files_that_fit_everywhere": sum(everywhere("fits", names) for names in within.values()),
        "functions": len(functions),
        "functions_that_compile_everywhere": sum(everywhere("compiles", [name]) for name in functions),
        "functions_that_fit_everywhere": sum(everywhere("fits", [name]) for name in functions),
    }


def _line(cell: Cell) -> str:
    if cell["status"] == OK:
        return f"{cell['registers']} registers, {cell['shared_bytes']} bytes shared"
    return f"{cell['status']}: {cell['why'][:160]}"
