"""The record of a kernel's correctness run on a GPU, and the check that every kernel source has one.

A kernel's proof travels with the repository: `results/v1/<host>/verify/<UTC>-<sha7>[-dirty]/verify.json`
names each file that the run covered by its SHA-256. A source that changed since, by one byte, is unproven
again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lean.contracts import from_data, to_data
from lean.errors import ContractError, IntegrityError, UsageError
from lean.toolchain.keeping import RESULTS, kept_now, write_whole
from lean.toolchain.probe import SCHEMA as PROBE_SCHEMA
from lean.toolchain.sources import imported, sha256_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Covered:
    """One file of the project that the run covered: its path from the top, and its SHA-256."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """One passed run on a GPU, with its whole probe.

    `dirty`: a covered file, or the program that ran it, differed from commit `git_sha`.
    """

    SCHEMA: ClassVar[str] = "kernel-proof/v1"

    about: str
    host: str
    git_sha: str
    dirty: bool
    gpu: str
    sm: str
    covered: tuple[Covered, ...]
    probe: dict[str, Any]

    def __post_init__(self) -> None:
        if self.probe.get("status") != "passed" or self.probe.get("gpu", {}).get("status") != "passed":
            raise ValueError("probe: expected one that passed on a GPU")


def unproven(root: Path) -> tuple[str, ...]:
    """Each kernel source with no passing record of its very bytes and its cases', and why.

    `root` is the checkout. Errors: `IntegrityError` naming a record that cannot be read.
    """
    proofs = read_proofs(root)
    return tuple(
        f"{source.relative_to(root).as_posix()}: {reason}"
        for source in sorted(root.glob("kernels/*/kernel.py"))
        if (reason := _missing(root, source, proofs)) is not None
    )


def read_proofs(root: Path) -> tuple[Proof, ...]:
    """All records under results/v1. Errors: `IntegrityError` naming a record that cannot be read."""
    return tuple(_read(path) for path in sorted((root / RESULTS).glob("*/verify/*/verify.json")))


def write_record(probe_file: Path, *, host: str, root: Path) -> dict[str, Any]:
    """Keep a passed probe as the record of the sources at `root`, a git checkout. Returns the record's path.

    Errors: `UsageError` for a bad host name or a probe that did not pass on a GPU; `IntegrityError` when a
    covered file is no longer what ran; `PreflightError` when git does not answer.
    """
    probe = _probe(probe_file)
    sources = {str(source["path"]): str(source["sha256"]) for source in probe["sources"]}
    kept = kept_now(
        root, host, sources, "is not what ran; run verify again on this checkout, then record that"
    )
    record = Proof(
        about="A correctness run of this project's kernels on a GPU; it holds for the files in `covered`.",
        host=kept.host,
        git_sha=kept.git_sha,
        dirty=kept.dirty,
        gpu=str(probe["gpu"]["device"]["name"]),
        sm=str(probe["gpu"]["device"]["sm"]),
        covered=tuple(Covered(path=path, sha256=expected) for path, expected in sources.items()),
        probe=probe,
    )
    folder = kept.folder("verify", probe["run"])
    write_whole(root / folder, {"verify.json": json.dumps(to_data(record), indent=2, sort_keys=True) + "\n"})
    return {
        "record": (folder / "verify.json").as_posix(),
        "covered": list(sources),
        "dirty": kept.dirty,
    }


def _missing(root: Path, source: Path, proofs: tuple[Proof, ...]) -> str | None:
    name = source.relative_to(root).as_posix()
    needed = {
        path.relative_to(root).as_posix(): sha256_of(path.read_bytes())
        for path in imported(root, (source, source.with_name("cases.py")))
    }
    about = [proof for proof in proofs if any(covered.path == name for covered in proof.covered)]
    if not about:
        return "no GPU run ever covered it; run verify on a host with a GPU and record it"
    for proof in about:
        if needed.items() <= {covered.path: covered.sha256 for covered in proof.covered}.items():
            return None
    last = about[-1]
    run = f"{last.probe['run']} on {last.host}"
    return f"it or its cases.py changed since its last GPU run ({run}); run verify there again and record it"


def _read(path: Path) -> Proof:
    try:
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict):
            raise ValueError("expected an object")
        return from_data(Proof, data, str(path))
    except (ValueError, ContractError) as error:
        raise IntegrityError(f"{path}: not a proof record: {error}") from None


def _probe(path: Path) -> dict[str, Any]:
    try:
        probe = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"--probe: {path}: cannot be read as JSON: {error}") from None
    if not isinstance(probe, dict) or probe.get("schema") != PROBE_SCHEMA:
        raise UsageError(f"--probe: {path}: no {PROBE_SCHEMA} document")
    if probe["status"] != "passed" or probe["gpu"]["status"] != "passed":
        raise UsageError(
            f"--probe: {path}: status is {probe['status']}; only a run that passed on a GPU is a proof"
        )
    return probe
