"""Every kernel of a geometry compiled for many chips from the same source: what comes out, or why not.

The count of sources that need no change is the project's retargeting figure (docs/retargeting.md).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kernels.aot import Tools
from kernels.spec import KernelSpec
from kernels.tiles import TUNING
from lean.errors import UsageError
from lean.host_facts import host_facts
from lean.toolchain.portability.cells import (
    LOST,
    OK,
    REFUSED,
    SHARED_LIMITS,
    UNFIT,
    Cell,
    Job,
    compile_cell,
    hashed_once,
    identity,
    job_for,
    read_cell,
    sources_of,
)
from lean.toolchain.shapes import specs_of
from lean.toolchain.sources import ROOT
from lean.toolchain.tools import find_tools, versions
from lean.toolchain.workers import Lost, run_jobs

SCHEMA = "portability/v1"
SIZES = "4b"  # the official contract's geometry
TARGETS = tuple(SHARED_LIMITS)
LIMIT_SECONDS = 120.0
ABOUT = (
    "Every kernel of a geometry compiled ahead of time, from unchanged source, for each chip. status: ok = "
    "compiled, no register spills, shared memory within the chip's limit of a block; does-not-fit = "
    "compiled, but `why` says what is too much; refused = the compiler said no, its words in `why`; lost = "
    "the compiler crashed or ran out of time. Nothing ran: this is no proof of results or speed. `whole`: "
    "every chip, and the official geometry. Sizes are bytes, times seconds; registers are a thread's, shared "
    "memory a block's, widest_load a thread's."
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to compile. `cache`: folder of what was compiled before; None compiles all of it.

    `seconds`: the limit of one compile; `workers`: compiles at a time.
    """

    sizes: str = SIZES
    targets: tuple[str, ...] = TARGETS
    cache: Path | None = None
    workers: int = 2
    seconds: float = LIMIT_SECONDS


def portability(
    options: Options, say: Say, compile_job: Callable[[Job], Cell] = compile_cell
) -> dict[str, Any]:
    """Compile what is not in the cache, and return the document, which `ABOUT` describes.

    `compile_job` is what a worker does with a job. Errors:
    `UsageError` for an unknown chip or geometry, `PreflightError` for a missing tool; no cell's failure is
    one.
    """
    check_targets(options.targets)
    started, start, busy = datetime.now(UTC), time.monotonic(), _cpu_seconds()
    tools = find_tools()
    specs = {target: specs_of(options.sizes, target) for target in options.targets}
    jobs = _distinct(tools, specs, options.cache)
    cells = {key: cell for key, job in jobs.items() if (cell := read_cell(job.entry)) is not None}
    known = len(cells)
    todo = [key for key in jobs if key not in cells]
    say(f"{len(jobs)} kernels to compile, {known} of them are in the cache; {options.workers} at a time")

    def finished(index: int, found: Cell | Lost) -> None:
        job = jobs[todo[index]]
        cells[todo[index]] = _settled(found, job)
        say(f"{len(cells)}/{len(jobs)} {job.target} {job.spec.name}: {_line(cells[todo[index]])}")

    run_jobs(
        compile_job,
        [jobs[key] for key in todo],
        workers=options.workers,
        seconds=options.seconds,
        finished=finished,
    )
    document = _document(options, tools, specs, cells)
    return document | {
        "run": started.strftime("%Y%m%dT%H%M%SZ"),
        "started": started.isoformat(timespec="seconds"),
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


def _settled(found: Cell | Lost, job: Job) -> Cell:
    if isinstance(found, Lost):
        reason = f"compiling {job.spec.name} for {job.target}: {found.reason}"
        return {"status": LOST, "why": reason, "seconds": found.seconds}
    return found


def _distinct(
    tools: Tools, specs: Mapping[str, Sequence[KernelSpec]], cache: Path | None
) -> dict[tuple[str, str], Job]:
    """One job for all kernels that are the same, by chip and identity."""
    jobs: dict[tuple[str, str], Job] = {}
    for target, kernels in specs.items():
        for spec in kernels:
            key = target, identity(spec)
            if key not in jobs:
                jobs[key] = job_for(tools, spec, target, cache)
    return jobs


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
        "sources": _sources(functions),
        "whole": options.sizes == SIZES and set(options.targets) == set(TARGETS),
        "targets": [_chip(target, rows) for target in options.targets],
        "functions": [_function(name, rows, options.targets) for name in functions],
        "figure": _figure(rows, functions, options.targets),
        "distinct": len(cells),
        "kernels": rows,
    }


def _sources(functions: Sequence[str]) -> dict[str, str]:
    """SHA-256 by path of the kernels' sources, and of what says which kernels and which tiles there are."""
    start = [ROOT / "kernels" / "qwen3" / "__init__.py", ROOT / "kernels" / "tiles.py"]
    start += sorted(TUNING.glob("*.json"))
    found = dict(hashed_once(tuple(start)))
    for function in functions:
        found |= sources_of(function)
    return dict(sorted(found.items()))


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
