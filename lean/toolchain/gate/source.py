"""Where a gate has its binaries from: the compiler of this machine, or the folder of a gate elsewhere."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from kernels.gate_probes.probes import Probe
from lean.errors import UsageError
from lean.toolchain.compiler import toolchain_for
from lean.toolchain.probe import RunFolder
from lean.toolchain.sources import ROOT, check_sources, hashed, imported, read_checked
from lean.toolchain.workers import Lost, run_jobs

SCHEMA = "gate/v1"
DOCUMENT = "gate.json"
DEFAULT_TARGETS = ("sm_121", "sm_90")
STAGES = ("01_bytecode", "02_tileir", "03_cubin", "04_sass")

Cell = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Probes compiled, here or elsewhere: a cell each, and who compiled them with what."""

    cells: list[Cell]
    tools: dict[str, str]
    compiled_by: dict[str, Any]


class Binaries(Protocol):
    """`targets`: the chips they are for."""

    targets: tuple[str, ...]

    def build(self, asked: Sequence[Probe], folder: RunFolder, say: Say) -> Built:
        """A cell for every probe and chip; the artefacts of each stage go into `folder`."""


def sources() -> dict[str, str]:
    """SHA-256 of every file that has a part in the answers, by path."""
    start = [*sorted((ROOT / "kernels" / "gate_probes").glob("*.py"))]
    start += [ROOT / "kernels" / f"{name}.py" for name in ("aot", "driver", "sass")]
    start += sorted((ROOT / "lean" / "toolchain" / "gate").glob("*.py"))
    return hashed(imported(ROOT, start))


class Compiler:
    """Compiles here, for `targets` or, where none are named, for those of the contracts and the GPU's own.

    `gpu`: the chip of this machine, if any. `seconds`: the limit of one probe. Errors: `PreflightError` for a
    toolchain that is not whole, `UsageError` for a chip that it does not know.
    """

    def __init__(
        self,
        targets: Sequence[str],
        gpu: str | None,
        *,
        workers: int,
        seconds: float,
        compile_probe: Callable[[Any], Any] | None,
    ) -> None:
        toolchain = toolchain_for(tuple(targets), "run with --kernels what a machine that has it compiled")
        from lean.toolchain.gate import compile as gate_compile

        self._gate_compile = gate_compile
        self._compile = compile_probe or gate_compile.compile_probe
        self._workers, self._seconds = workers, seconds
        self._tools = toolchain.tools
        here = (gpu,) if gpu in toolchain.targets else ()
        self.targets = tuple(dict.fromkeys(targets or (*DEFAULT_TARGETS, *here)))

    def build(self, asked: Sequence[Probe], folder: RunFolder, say: Say) -> Built:
        """See `Binaries`."""
        jobs = [
            self._gate_compile.Job(tools=self._tools, probe=probe, target=target)
            for target in self.targets
            for probe in asked
        ]
        say(f"{len(jobs)} probes to compile, {self._workers} at a time")
        cells: dict[int, Cell] = {}

        def finished(index: int, found: Any) -> None:
            cells[index] = _compiled(jobs[index].probe, jobs[index].target, found, folder)
            say(f"{len(cells)}/{len(jobs)} {shown(cells[index])}")

        run_jobs(self._compile, jobs, workers=self._workers, seconds=self._seconds, finished=finished)
        tools = {"cuda-tile": importlib.metadata.version("cuda-tile")}
        tools |= {tool.package: tool.version for tool in self._gate_compile.every(self._tools)}
        in_order = [cells[index] for index in range(len(jobs))]
        return Built(cells=in_order, tools=tools, compiled_by={"here": True})


class Carried:
    """What a gate elsewhere compiled, for `targets` or for all chips of `folder`.

    Errors: `UsageError` for no folder of a gate, or a chip it has nothing for; `IntegrityError` for files
    that are not what was compiled, or were compiled from other sources than this checkout's.
    """

    def __init__(self, folder: Path, targets: Sequence[str]) -> None:
        self._folder = folder
        self._record = _read_record(folder)
        held: list[str] = self._record["targets"]
        if unknown := [target for target in targets if target not in held]:
            raise UsageError(
                f"--kernels: {folder} holds {', '.join(held)}, not {', '.join(unknown)}; compile them with "
                "`gate --target`"
            )
        self.targets = tuple(targets or held)

    def build(self, asked: Sequence[Probe], folder: RunFolder, say: Say) -> Built:
        """See `Binaries`. Errors: `UsageError` when the folder has none of what is asked."""
        names = {probe.name for probe in asked}
        cells = [
            cell
            for cell in self._record["cells"]
            if f"{cell['precision']}.{cell['route']}" in names and cell["target"] in self.targets
        ]
        if not cells:
            wanted = ", ".join(sorted(names))
            raise UsageError(f"--kernels: {self._folder} holds none of {wanted}; compile them with `gate`")
        for file in _files(cells):
            stage, name = file["file"].split("/")
            folder.write(stage, name, (self._folder / file["file"]).read_bytes())
        say(f"{len(cells)} probes compiled elsewhere, in run {self._record['run']}")
        by = {"here": False, "run": self._record["run"], "host": self._record["host"]["host"]}
        return Built(cells=cells, tools=self._record["tools"], compiled_by=by)


def shown(cell: Cell) -> str:
    """One cell in one line."""
    why = f": {cell['why'].splitlines()[0][:160]}" if cell["why"] else ""
    return f"{cell['target']} {cell['precision']} {cell['route']}: {cell['status']}{why}"


def _compiled(probe: Probe, target: str, found: Any, folder: RunFolder) -> Cell:
    """The cell of a probe that was compiled, or whose compiler was lost; its artefacts are written."""
    cell: Cell = {
        "target": target,
        "precision": probe.precision,
        "route": probe.route,
        "kernel": f"kernels/gate_probes/tiles.py:{probe.function}",
        "operands": [asdict(operand) | {"shape": list(operand.shape)} for operand in probe.operands],
        "reached": None,
        "why": "",
    }
    if isinstance(found, Lost):
        cell |= {"status": "blocked", "why": f"compiling it: {found.reason}", "seconds": found.seconds}
    else:
        cell |= found.facts
        cell["files"] = [
            folder.write(stage, f"{probe.name}.{target}.{suffix}", data)
            for stage, suffix, data in found.artifacts
        ]
    if cell["status"] == "blocked":
        cell["log"] = folder.log(f"{probe.name}.{target}.log", f"{cell['why']}\n")
    return cell


def _files(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    return [file for cell in cells for file in cell.get("files", ())]


def _read_record(folder: Path) -> dict[str, Any]:
    """The record of a gate folder, whose files are what it says and made from this checkout's sources."""
    here = sources()
    try:
        record: dict[str, Any] = json.loads((folder / DOCUMENT).read_bytes())
        if record["schema"] != SCHEMA:
            raise ValueError(f"its schema is {record['schema']}")
        cells = [_as_compiled(cell) for cell in record["cells"]]
        files = {str(file["file"]): str(file["sha256"]) for file in _files(cells)}
        theirs = dict(record["sources"])
        if strange := [name for name in files if not _plain(name)]:
            raise ValueError(f"it names {strange[0]!r}")
        record = {name: record[name] for name in ("run", "targets", "host", "tools")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UsageError(
            f"--kernels: {folder}: no folder of a gate: {reason}; make one with `gate`"
        ) from None
    check_sources(folder, here, theirs)
    for name, sha256 in files.items():
        read_checked(folder / name, sha256)
    return record | {"cells": cells}


def _plain(name: str) -> bool:
    """Whether it is one file of a stage's folder."""
    stage, _, file = name.partition("/")
    return stage in STAGES and "/" not in file and file not in ("", ".", "..")


def _as_compiled(cell: Cell) -> Cell:
    """How far the compiler came: what ran elsewhere is no news here."""
    texts = {name: str(cell[name]) for name in ("target", "precision", "route", "status", "why")}
    if cell["reached"] not in ("05_instruction", "06_run"):
        return cell | texts
    found = cell | texts | {"status": "compile-only", "reached": "05_instruction", "why": ""}
    return {name: value for name, value in found.items() if name not in ("limits", "run_seconds")}
