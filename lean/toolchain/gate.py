"""The precision gate: what a compiler and a chip make of each precision, by each way of writing it.

A host with the compiler compiles the probes of `kernels.gate_probes` and runs them where it has a GPU of that
kind. A host without one runs what another compiled: the folder of an earlier gate, brought along. Every
compile and every launch has a process and a time limit of its own.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from kernels.gate_probes.probes import NOT_APPLICABLE, PRECISIONS, ROUTES, Probe, probes
from lean.errors import GateError, IntegrityError, PreflightError, UsageError, error_document
from lean.host_facts import host_facts
from lean.toolchain import gate_run
from lean.toolchain.gate_changes import changes, newest, recommended
from lean.toolchain.probe import RunFolder, run_folder
from lean.toolchain.sources import ROOT, imported
from lean.toolchain.workers import Lost, run_jobs

SCHEMA = "gate/v1"
DOCUMENT = "gate.json"
DEFAULT_TARGETS = ("sm_121", "sm_90")
STAGES = ("01_bytecode", "02_tileir", "03_cubin", "04_sass")
LIMIT_SECONDS = 60.0
ABOUT = (
    "Small kernels, one for each precision and authoring route, taken as far as this machine can. `reached` "
    "is the last stage that worked: 01_bytecode (Python front end), 02_tileir, 03_cubin (compiler), 04_sass, "
    "05_instruction (the machine code holds `wanted`, the chip's own instruction for it), 06_run (result "
    "within `limits` of FP64). status: cleared = it ran here and is correct; compile-only = all but the run, "
    "see `why`; blocked = it went no further, `why` has the compiler's or the driver's own words. "
    "`files` are relative to this document in the run's folder; times are seconds, sizes bytes, hashes "
    "SHA-256."
)

Cell = dict[str, Any]
Say = Callable[[str], None]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Probes compiled, here or elsewhere: a cell each, and who compiled them with what."""

    cells: list[Cell]
    tools: dict[str, str]
    compiled_by: dict[str, Any]


def gate(
    options: Options,
    say: Say,
    *,
    compile_probe: Callable[[Any], Any] | None = None,
    run_probe: Callable[[Any], Any] | None = None,
    find_gpu: Callable[[], dict[str, Any]] | None = None,
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
    gpu = _gpu(options, find_gpu or gate_run.find_gpu)
    targets = options.targets or _default_targets(options, gpu)
    source = _Carried(options, targets) if options.kernels else _Compiler(options, targets, compile_probe)
    with run_folder(options.out, started := datetime.now(UTC)) as (name, folder):
        built = source.build(asked, folder, say)
        _run(built.cells, gpu, folder, options, run_probe or gate_run.run_probe, say)
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "about": ABOUT,
            "run": name,
            "started": started.isoformat(timespec="seconds"),
            "targets": list(targets),
            "tools": built.tools,
            "compiled_by": built.compiled_by,
            "sources": sources(),
            "host": host_facts(),
            "gpu": gpu,
            "cells": built.cells,
            "not_applicable": [
                {"precision": p, "route": r, "why": why} for (p, r), why in NOT_APPLICABLE.items()
            ],
            "recommended": {target: recommended(target, built.cells) for target in targets},
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


def sources() -> dict[str, str]:
    """SHA-256 of every file that has a part in the answers, by path."""
    start = [*sorted((ROOT / "kernels" / "gate_probes").glob("*.py"))]
    start += [ROOT / "kernels" / f"{name}.py" for name in ("aot", "driver", "sass")]
    start += sorted((ROOT / "lean" / "toolchain").glob("gate*.py"))
    return {
        path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in imported(ROOT, start)
    }


class _Compiler:
    """Compiles here. Errors: those of `gate`, before anything is compiled."""

    def __init__(
        self, options: Options, targets: Sequence[str], compile_probe: Callable[[Any], Any] | None
    ) -> None:
        from lean.toolchain import chain, gate_compile

        self._options, self._targets = options, targets
        self._gate_compile = gate_compile
        self._compile = compile_probe or gate_compile.compile_probe
        self._tools = chain.find_tools()
        known = chain.supported_targets(self._tools)
        if unknown := [target for target in targets if target not in known]:
            raise UsageError(
                f"--target: tileiras does not know {', '.join(unknown)}; known: {', '.join(known)}"
            )

    def build(self, asked: Sequence[Probe], folder: RunFolder, say: Say) -> Built:
        """Every probe for every chip; artefacts of each stage go into `folder`."""
        jobs = [
            self._gate_compile.Job(tools=self._tools, probe=probe, target=target)
            for target in self._targets
            for probe in asked
        ]
        say(f"{len(jobs)} probes to compile, {self._options.workers} at a time")
        cells: dict[int, Cell] = {}

        def finished(index: int, found: Any) -> None:
            job = jobs[index]
            cells[index] = _cell(job.probe, job.target)
            if isinstance(found, Lost):
                cells[index] |= {"status": "blocked", "why": f"compiling it: {found.reason}"}
                cells[index]["seconds"] = found.seconds
            else:
                files = [
                    folder.write(stage, f"{job.probe.name}.{job.target}.{suffix}", data)
                    for stage, suffix, data in found.artifacts
                ]
                cells[index] |= found.facts | {"files": files}
            if cells[index]["status"] == "blocked":
                log = f"{job.probe.name}.{job.target}.log"
                cells[index]["log"] = folder.log(log, f"{cells[index]['why']}\n")
            say(f"{len(cells)}/{len(jobs)} {_shown(cells[index])}")

        run_jobs(
            self._compile,
            jobs,
            workers=self._options.workers,
            seconds=self._options.seconds,
            finished=finished,
        )
        tools = {"cuda-tile": importlib.metadata.version("cuda-tile")}
        tools |= {tool.package: tool.version for tool in self._gate_compile.every(self._tools)}
        return Built(
            cells=[cells[index] for index in range(len(jobs))], tools=tools, compiled_by={"here": True}
        )


class _Carried:
    """Takes what a gate elsewhere compiled. Errors: those of `gate`, before anything is written."""

    def __init__(self, options: Options, targets: Sequence[str]) -> None:
        assert options.kernels is not None
        self._folder = options.kernels
        self._record = _read_folder(options.kernels)
        if unknown := [target for target in targets if target not in self._record["targets"]]:
            raise UsageError(
                f"--kernels: {options.kernels} holds {', '.join(self._record['targets'])}, not "
                f"{', '.join(unknown)}; compile them with `gate --target`"
            )
        self._targets = targets

    def build(self, asked: Sequence[Probe], folder: RunFolder, say: Say) -> Built:
        """The cells as they were compiled, their artefacts copied into `folder`."""
        names = {probe.name for probe in asked}
        cells = []
        for old in self._record["cells"]:
            if f"{old['precision']}.{old['route']}" in names and old["target"] in self._targets:
                cells.append(old)
                for file in old.get("files", ()):
                    stage, name = file["file"].split("/")
                    folder.write(stage, name, (self._folder / file["file"]).read_bytes())
        say(f"{len(cells)} probes compiled elsewhere, in run {self._record['run']}")
        by = {"here": False, "run": self._record["run"], "host": self._record["host"]["host"]}
        return Built(cells=cells, tools=self._record["tools"], compiled_by=by)


def _read_folder(folder: Path) -> dict[str, Any]:
    """The record of a gate folder, whose files are what it says and made from this checkout's sources."""
    try:
        record = json.loads((folder / DOCUMENT).read_bytes())
        if record["schema"] != SCHEMA:
            raise ValueError(f"its schema is {record['schema']}")
        files = [file for cell in record["cells"] for file in cell.get("files", ())]
        here = sources()
        stale = sorted(
            path for path in here | record["sources"] if here.get(path) != record["sources"].get(path)
        )
        for file in files:
            stage, name = file["file"].split("/")
            if stage not in STAGES or name in ("", ".", ".."):
                raise ValueError(f"it names {file['file']!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"--kernels: {folder}: no folder of a gate: {error}; make one with `gate`") from None
    if stale:
        raise IntegrityError(
            f"{folder}: compiled from another {', '.join(stale)}; compile from this checkout"
        )
    for file in files:
        path = folder / file["file"]
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != file["sha256"]:
            raise IntegrityError(f"{path}: not the file that was compiled")
    # What ran there is no news here: only how far the compiler came.
    for cell in record["cells"]:
        if cell["reached"] in ("05_instruction", "06_run"):
            cell |= {"status": "compile-only", "reached": "05_instruction"}
            cell |= {"why": "", "limits": None, "run_seconds": None}
    return dict(record)


def _gpu(options: Options, find_gpu: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The GPU's facts, or why none is used. Errors: `PreflightError`."""
    if options.gpu == "none":
        return {"status": "not used", "reason": "left out with --gpu none"}
    (found,) = run_jobs(gate_run.ask, [find_gpu], workers=1, seconds=options.seconds)
    if isinstance(found, Lost):
        raise PreflightError(f"the GPU cannot be used: {found.reason}; or leave it out with --gpu none")
    if "unusable" in found:
        raise PreflightError(f"the GPU cannot be used: {found['unusable']}; or leave it out with --gpu none")
    return found


def _default_targets(options: Options, gpu: dict[str, Any]) -> tuple[str, ...]:
    """Both chips of the contracts, or what the folder holds, and that of the GPU here."""
    if options.kernels:
        return tuple(_read_folder(options.kernels)["targets"])
    here = (gpu["device"]["sm"],) if "device" in gpu else ()
    return tuple(dict.fromkeys((*DEFAULT_TARGETS, *here)))


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
        gate_run.Job(
            probe=by_name[name], cubin=(folder.path / "03_cubin" / f"{name}.{sm}.cubin").read_bytes()
        )
        for name in (f"{cell['precision']}.{cell['route']}" for cell in todo)
    ]

    def finished(index: int, found: Any) -> None:
        cell = todo[index]
        if isinstance(found, Lost):
            found = {"status": "blocked", "why": f"running it: {found.reason}", "run_seconds": found.seconds}
        cell |= found
        say(f"{index + 1}/{len(jobs)} ran {_shown(cell)}")

    run_jobs(run_probe, jobs, workers=1, seconds=options.seconds, finished=finished, retire=gate_run.spoilt)


def _verdict(record: dict[str, Any]) -> dict[str, Any]:
    """The `error` of a record that leaves a chip with nothing to start from."""
    without = [target for target, advice in record["recommended"].items() if advice["primary"] is None]
    asked = {cell["precision"] for cell in record["cells"] if cell["route"] == "mma"}
    if without and asked & {"bf16", "fp16"}:
        why = record["recommended"][without[0]]["why"]
        return error_document(GateError(f"{', '.join(without)}: no precision to start from: {why}"))
    return {}


def _cell(probe: Probe, target: str) -> Cell:
    return {
        "target": target,
        "precision": probe.precision,
        "route": probe.route,
        "kernel": f"kernels/gate_probes/tiles.py:{probe.function}",
        "operands": [asdict(operand) for operand in probe.operands],
        "reached": None,
        "why": "",
    }


def _shown(cell: Cell) -> str:
    why = f": {cell['why'].splitlines()[0][:160]}" if cell["why"] else ""
    return f"{cell['target']} {cell['precision']} {cell['route']}: {cell['status']}{why}"
