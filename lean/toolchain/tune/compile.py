"""Candidates compiled ahead of time, in parallel, each in a process of its own, and the folder of them.

`<folder>/candidates.jsonl` is a journal: its header says for which contract, chip, sources and tools, each
line what became of one candidate; one that was lost is compiled again. `<folder>/<digest>.cubin` is its
machine code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernels.spec import KernelSpec
from lean.errors import IntegrityError, UsageError
from lean.toolchain.compiler import toolchain_for
from lean.toolchain.sources import check_sources, hashed_sources, read_checked, sha256_of
from lean.toolchain.speed.contract_shapes import ContractShapes, shapes_document, shapes_of
from lean.toolchain.tune.journal import Journal, read_journal
from lean.toolchain.tune.plan import Candidate, Plan
from lean.toolchain.words import public
from lean.toolchain.workers import Lost, run_jobs

SCHEMA = "tune-candidates/v1"
INDEX = "candidates.jsonl"
LIMIT_SECONDS = 120.0

Say = Callable[[str], None]
Entries = Mapping[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One specification to compile with `tools` for `target`."""

    tools: Any
    spec: KernelSpec
    target: str


def compile_candidate(job: Job) -> dict[str, Any]:
    """In a worker: `compiled` with its `cubin`, `refused` and why (spills are, unless it says so), or `lost`.

    A compiler that crashed or ran too long said nothing of the candidate: that one is lost.
    """
    from kernels import aot, build
    from lean.toolchain.tools import is_refusal

    try:
        built = build.build_kernel(job.tools, job.spec, job.target)
    except aot.AotError as error:
        status = "refused" if is_refusal(error) else "lost"
        return {"status": status, "reason": public(str(error)).splitlines()[0]}
    used = asdict(built.resources)
    if (used["spill_stores"] or used["spill_loads"]) and not job.spec.spills:
        words = f"{used['spill_stores']} stores and {used['spill_loads']} loads"
        return {"status": "refused", "reason": f"registers spill: {words}", "resources": used}
    return {"status": "compiled", "resources": used, "cubin": built.cubin}


def kernel_sources(target: str) -> dict[str, str]:
    """SHA-256 of what kernels are made from; the tiles that are chosen now are no part of a candidate."""
    return {path: sha256 for path, sha256 in hashed_sources(target).items() if "kernels/tuning/" not in path}


def compile_plan(
    plan: Plan,
    shapes: ContractShapes,
    folder: Path,
    say: Say,
    *,
    workers: int,
    work: Callable[[Job], dict[str, Any]] = compile_candidate,
    seconds: float = LIMIT_SECONDS,
) -> Entries:
    """Compile what `folder` does not hold yet. Returns what became of each candidate, by its digest.

    Errors: `PreflightError` without a compiler; `UsageError` for a chip that it does not know.
    """
    toolchain = toolchain_for((plan.target,), "bring compiled candidates along with --kernels")
    header = {
        "schema": SCHEMA,
        "contract": shapes_document(shapes),
        "target": plan.target,
        "sources": kernel_sources(plan.target),
        "tools": toolchain.versions,
    }
    with Journal(folder / INDEX, header) as journal:
        todo = {c.digest: c for c in plan.all() if not _held(folder, c, journal.entries)}
        say(f"{plan.target}: {len(todo)} candidates to compile, {workers} at a time")
        asked = list(todo.values())
        jobs = [Job(tools=toolchain.tools, spec=candidate.spec, target=plan.target) for candidate in asked]
        count = 0

        def finished(index: int, found: Any) -> None:
            nonlocal count
            count += 1
            if isinstance(found, Lost):
                found = {"status": "lost", "reason": f"compiling it: {found.reason}"}
            cubin = found.pop("cubin", None)
            if cubin is not None:
                _write(folder / f"{asked[index].digest}.cubin", cubin)
                found["sha256"] = sha256_of(cubin)
            journal.add(asked[index].digest, found | {"candidate": asked[index].label})
            say(f"{count}/{len(asked)} {asked[index].label}: {found.get('reason', found['status'])}")

        run_jobs(work, jobs, workers=workers, seconds=seconds, finished=finished)
        return dict(journal.entries)


def folder_contract(folder: Path, contract: str) -> ContractShapes:
    """The contract that a folder of candidates is for. Errors: those of `read_plan`."""
    header, _, _ = read_journal(folder / INDEX)
    if header is None or header.get("schema") != SCHEMA:
        raise UsageError(
            f"--kernels: {folder}: no candidates; make them with `python -m lean.toolchain tune "
            "--compile-only`"
        )
    return shapes_of(folder / INDEX, header, contract)


def read_plan(plan: Plan, folder: Path) -> tuple[Entries, dict[str, str]]:
    """What a folder from elsewhere holds, by digest, and the tools' versions.

    Errors: `UsageError` for another chip's folder; `IntegrityError` for one of other sources.
    """
    header, entries, _ = read_journal(folder / INDEX)
    assert header is not None  # folder_contract read it
    if header["target"] != plan.target:
        raise UsageError(f"--kernels: {folder} is for {header['target']}, the GPU is {plan.target}")
    check_sources(folder, kernel_sources(plan.target), header["sources"])
    return entries, header["tools"]


def read_cubin(folder: Path, candidate: Candidate, entry: Mapping[str, Any]) -> bytes:
    """A candidate's machine code. Errors: `IntegrityError` when it is not what was compiled."""
    return read_checked(folder / f"{candidate.digest}.cubin", entry["sha256"])


def _held(folder: Path, candidate: Candidate, entries: Entries) -> bool:
    entry = entries.get(candidate.digest)
    if entry is None or entry["status"] != "compiled":
        return entry is not None and entry["status"] == "refused"
    try:
        read_cubin(folder, candidate, entry)
    except IntegrityError:
        return False
    return True


def _write(path: Path, data: bytes) -> None:
    staged = path.with_suffix(".partial")
    with staged.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
