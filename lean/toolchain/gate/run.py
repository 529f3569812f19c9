"""The precision gate: what a compiler and a chip make of each precision, by each way of writing it.

A host with the compiler compiles the probes of `kernels.gate_probes` and runs them where it has a GPU of that
kind. A host without one runs what another compiled: the folder of an earlier gate, brought along. Every
compile and every launch has a process and a time limit of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from kernels.gate_probes.probes import NOT_APPLICABLE, PRECISIONS, ROUTES, Probe, probes
from lean.errors import GateError, PreflightError, UsageError, error_document
from lean.host_facts import host_facts
from lean.toolchain.chip.find import Find, find_gpu, found_apart
from lean.toolchain.gate import launch
from lean.toolchain.gate.changes import changes, newest, recommended
from lean.toolchain.gate.source import (
    DOCUMENT,
    SCHEMA,
    Binaries,
    Carried,
    Cell,
    Compiler,
    Say,
    shown,
    sources,
)
from lean.toolchain.probe import RunFolder, run_folder
from lean.toolchain.workers import Lost, run_jobs

LIMIT_SECONDS = 60.0
ABOUT = (
    "Small kernels, one for each precision and authoring route, taken as far as this machine can. `reached` "
    "is the last stage that worked: 01_bytecode (Python front end), 02_tileir, 03_cubin (compiler), 04_sass, "
    "05_instruction (the machine code holds `wanted`, the chip's own instruction for it), 06_run (result "
    "within `limits` of FP64). status: cleared = it ran here and is correct; compile-only = all but the run, "
    "see `why`; blocked = it went no further, `why` has the compiler's or the driver's own words. "
    "whole: every precision and route was asked. `files` are relative to this document in the run's folder; "
    "times are seconds, sizes bytes, hashes SHA-256."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to ask. Empty `precisions` or `routes` are all of them.

    `kernels`: the folder of a gate that was compiled elsewhere, in the place of a compiler. `previous`: the
    gate.json to compare with; the newest under `out` by default. `seconds`: the limit of one probe.
    """

    out: Path
    targets: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    gpu: Literal["auto", "none"] = "auto"
    kernels: Path | None = None
    previous: Path | None = None
    workers: int = 2
    seconds: float = LIMIT_SECONDS


def gate(
    options: Options,
    say: Say,
    *,
    compile_probe: Callable[[Any], Any] | None = None,
    run_probe: Callable[[Any], Any] | None = None,
    find: Find = find_gpu,
) -> dict[str, Any]:
    """Ask all of it. Returns the record, which also lies in `<out>/<UTC>/gate.json` beside its artefacts.

    The functions are what workers do with a probe, and what says which GPU is here; the real ones by default.
    A record with an `error` has a chip with no precision to start from. Errors, before anything is written:
    `UsageError` for an unknown precision, route or chip; `PreflightError` for a toolchain that is not whole
    or a GPU that cannot be used; `IntegrityError` for binaries that are not what was compiled.
    """
    start = time.monotonic()
    asked = chosen(options.precisions, options.routes)
    before = newest(options.out, options.previous, SCHEMA)
    gpu = _gpu(options, find)
    binaries = _binaries(options, gpu, compile_probe)
    with run_folder(options.out, started := datetime.now(UTC)) as (name, folder):
        built = binaries.build(asked, folder, say)
        _run(built.cells, gpu, folder, options, run_probe or launch.run_probe, say)
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "about": ABOUT,
            "run": name,
            "started": started.isoformat(timespec="seconds"),
            "targets": list(binaries.targets),
            "tools": built.tools,
            "compiled_by": built.compiled_by,
            "sources": sources(),
            "host": host_facts(),
            "gpu": gpu,
            "cells": built.cells,
            "whole": len(built.cells) == len(probes()) * len(binaries.targets),
            "not_applicable": [
                {"precision": p, "route": r, "why": why} for (p, r), why in NOT_APPLICABLE.items()
            ],
            "recommended": {target: recommended(target, built.cells) for target in binaries.targets},
        }
        record["changes"] = changes(before, record)
        record["seconds"] = round(time.monotonic() - start, 3)
        record |= _verdict(record)
        folder.write(".", DOCUMENT, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    return record


def chosen(precisions: Sequence[str], routes: Sequence[str]) -> tuple[Probe, ...]:
    """The probes of these precisions and routes. Errors: `UsageError` for one that is unknown or for none."""
    for flag, given, known in (("--precision", precisions, PRECISIONS), ("--route", routes, ROUTES)):
        if unknown := [name for name in given if name not in known]:
            raise UsageError(f"{flag}: {', '.join(unknown)}; expected some of {', '.join(known)}")
    found = tuple(
        probe
        for probe in probes()
        if probe.precision in (precisions or PRECISIONS) and probe.route in (routes or ROUTES)
    )
    if not found:
        reasons = dict.fromkeys(NOT_APPLICABLE[p, r] for p in precisions for r in routes)
        raise UsageError(f"no such route: {'; '.join(reasons)}")
    return found


def _binaries(options: Options, gpu: dict[str, Any], compile_probe: Callable[[Any], Any] | None) -> Binaries:
    """Where the binaries come from. Errors: those of `gate`."""
    if options.kernels is not None:
        return Carried(options.kernels, options.targets)
    here = gpu["device"]["sm"] if "device" in gpu else None
    return Compiler(
        options.targets,
        here,
        workers=options.workers,
        seconds=options.seconds,
        compile_probe=compile_probe,
    )


def _gpu(options: Options, find: Find) -> dict[str, Any]:
    """The GPU's facts, or why none is used. Errors: `PreflightError`."""
    if options.gpu == "none":
        return {"status": "not used", "reason": "left out with --gpu none"}
    found = found_apart(find, options.seconds)
    if "unusable" in found:
        raise PreflightError(f"the GPU cannot be used: {found['unusable']}; or leave it out with --gpu none")
    return found


def _run(
    cells: Iterable[Cell],
    gpu: dict[str, Any],
    folder: RunFolder,
    options: Options,
    run_probe: Callable[[Any], Any],
    say: Say,
) -> None:
    """Launch what was compiled for the GPU that is here; the others stay compile-only and say why."""
    sm = gpu["device"]["sm"] if "device" in gpu else None
    ready = [cell for cell in cells if cell["reached"] == "05_instruction"]
    for cell in ready:
        here = f"this machine's GPU is {sm}" if sm else gpu["reason"]
        cell["why"] = f"not run: {here}" if cell["target"] != sm else ""
    todo = [cell for cell in ready if cell["target"] == sm]
    by_name = {probe.name: probe for probe in probes()}
    jobs = [
        launch.Job(probe=by_name[name], cubin=(folder.path / "03_cubin" / f"{name}.{sm}.cubin").read_bytes())
        for name in (f"{cell['precision']}.{cell['route']}" for cell in todo)
    ]

    def finished(index: int, found: Any) -> None:
        cell = todo[index]
        if isinstance(found, Lost):
            found = {"status": "blocked", "why": f"running it: {found.reason}", "run_seconds": found.seconds}
        cell |= found
        say(f"{index + 1}/{len(jobs)} ran {shown(cell)}")

    run_jobs(run_probe, jobs, workers=1, seconds=options.seconds, finished=finished, retire=launch.spoilt)


def _verdict(record: dict[str, Any]) -> dict[str, Any]:
    """The `error` of a record that leaves a chip with nothing to start from."""
    without = [target for target, advice in record["recommended"].items() if advice["primary"] is None]
    asked = {cell["precision"] for cell in record["cells"] if cell["route"] == "mma"}
    if without and asked & {"bf16", "fp16"}:
        why = record["recommended"][without[0]]["why"]
        return error_document(GateError(f"{', '.join(without)}: no precision to start from: {why}"))
    return {}
