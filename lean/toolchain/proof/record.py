"""The record of a kernel's correctness run on a GPU, and the check that every kernel source has one.

A kernel's proof travels with the repository: `results/v1/<host>/verify/<UTC>-<sha7>[-dirty]/verify.json`
names each file that the run covered by its SHA-256. A source that changed since, by one byte, is unproven
again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lean.contracts import from_data, to_data
from lean.contracts.host import HOST_NAME
from lean.errors import ContractError, IntegrityError, PreflightError, UsageError
from lean.files.staging import publish, staged_directory
from lean.toolchain.probe import SCHEMA as PROBE_SCHEMA
from lean.toolchain.sources import imported

RESULTS = Path("results") / "v1"
PROGRAM = (":(glob)kernels/*.py", "lean/toolchain")
_GIT_SECONDS = 30.0


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
    if not HOST_NAME.fullmatch(host):
        raise UsageError(f"--host: {host!r} is no host name; use letters, digits, '.', '_' and '-'")
    probe = _probe(probe_file)
    sources = [(str(source["path"]), str(source["sha256"])) for source in probe["sources"]]
    for path, expected in sources:
        if not (root / path).is_file() or _sha256(root / path) != expected:
            raise IntegrityError(
                f"{path}: is not what ran; run verify again on this checkout, then record that"
            )
    sha = git(root, "rev-parse", "HEAD").strip()
    dirty = bool(git(root, "status", "--porcelain", "--", *PROGRAM, *(path for path, _ in sources)).strip())
    record = Proof(
        about="A correctness run of this project's kernels on a GPU; it holds for the files in `covered`.",
        host=host,
        git_sha=sha,
        dirty=dirty,
        gpu=str(probe["gpu"]["device"]["name"]),
        sm=str(probe["gpu"]["device"]["sm"]),
        covered=tuple(Covered(path=path, sha256=expected) for path, expected in sources),
        probe=probe,
    )
    folder = RESULTS / host / "verify" / f"{probe['run']}-{sha[:7]}{'-dirty' if dirty else ''}"
    text = json.dumps(to_data(record), indent=2, sort_keys=True) + "\n"
    write_whole(root / folder, {"verify.json": text})
    return {
        "record": (folder / "verify.json").as_posix(),
        "covered": [path for path, _ in sources],
        "dirty": dirty,
    }


def _missing(root: Path, source: Path, proofs: tuple[Proof, ...]) -> str | None:
    name = source.relative_to(root).as_posix()
    needed = {
        path.relative_to(root).as_posix(): _sha256(path)
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


def write_whole(folder: Path, files: Mapping[str, str]) -> None:
    """Write a record's folder, text by file name; it appears whole. Errors: `UsageError` when it exists."""
    if folder.exists():
        raise UsageError(f"{folder}: already recorded; a record is never rewritten")
    staged = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    with staged_directory(staged):
        for name, text in files.items():
            (staged / name).write_text(text, encoding="utf-8")
        publish(staged, folder)


def git(root: Path, *arguments: str) -> str:
    """What git prints. Errors: `PreflightError` when it does not answer, or `root` is no checkout."""
    try:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise PreflightError(
            f"{root}: git {arguments[0]} failed: {error}; --root must be a git checkout"
        ) from None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
