"""How records are kept in a checkout: of these very sources, at a named commit, whole, never rewritten."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lean.contracts.host import HOST_NAME
from lean.errors import IntegrityError, PreflightError, UsageError
from lean.files.staging import publish, staged_directory
from lean.toolchain.sources import sha256_of

RESULTS = Path("results") / "v1"
PROGRAM = (":(glob)kernels/*.py", "lean/toolchain")
_GIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Where a record comes from. `dirty`: one of its sources, or the program, differed from `git_sha`."""

    host: str
    git_sha: str
    dirty: bool

    def folder(self, kind: str, run: str) -> Path:
        """The record's folder below the checkout: `results/v1/<host>/<kind>/<run>-<sha7>[-dirty]`."""
        return RESULTS / self.host / kind / f"{run}-{self.git_sha[:7]}{'-dirty' if self.dirty else ''}"


def kept_now(root: Path, host: str, sources: Mapping[str, str], otherwise: str) -> Kept:
    """A record of `sources`, SHA-256 by path below `root`, a git checkout, as it would be kept now.

    Errors: `UsageError` for a bad host name; `IntegrityError` naming a source that is another one by now, and
    what to do `otherwise`; `PreflightError` when git does not answer.
    """
    if not HOST_NAME.fullmatch(host):
        raise UsageError(f"--host: {host!r} is no host name; use letters, digits, '.', '_' and '-'")
    for path, expected in sources.items():
        if not (root / path).is_file() or sha256_of((root / path).read_bytes()) != expected:
            raise IntegrityError(f"{path}: {otherwise}")
    return Kept(
        host=host,
        git_sha=_git(root, "rev-parse", "HEAD").strip(),
        dirty=bool(_git(root, "status", "--porcelain", "--", *PROGRAM, *sources).strip()),
    )


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


def _git(root: Path, *arguments: str) -> str:
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
