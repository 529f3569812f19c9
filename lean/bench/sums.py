"""SHA256SUMS of a run directory: the hash of every raw file, so that a record edited by hand shows.

The format is that of GNU coreutils (`sha256sum -c SHA256SUMS` verifies it). report.md and plot.png are not in
it: they are made from run.json, again whenever one likes. The sums tell an edit, not a forger, who can write
them anew; git's history is what binds those. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lean.errors import PackError
from lean.files.hashing import sha256_descriptor
from lean.files.safe_path import open_regular, read_small

SUMS_FILE = "SHA256SUMS"
RUN_FILE = "run.json"
RAW_FILES = (RUN_FILE, "env.json", "samples.jsonl", "log.txt")
MAX_BYTES = 64 << 10

_LINE = re.compile(r"([0-9a-f]{64}) [ *](\w[\w.+-]{0,199})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What a run directory's SHA256SUMS says of it.

    `recorded`: there is one; records of before it have none. `altered` names each file that is not what was
    written, and how; empty for a directory that is whole.
    """

    recorded: bool
    altered: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """In a few words."""
        if not self.recorded:
            return "no sums recorded"
        return f"altered: {'; '.join(self.altered)}" if self.altered else "ok"


def write_sums(folder: Path, names: Sequence[str]) -> None:
    """Write SHA256SUMS over these files of a directory. Errors: `OSError`, `PackError`."""
    lines = (f"{_sha256(folder, name)}  {name}\n" for name in names)
    (folder / SUMS_FILE).write_text("".join(lines), encoding="ascii")


def check_sums(folder: Path) -> Sums:
    """Hash again what SHA256SUMS names. Nothing is raised: what cannot be read counts as altered."""
    if not os.path.lexists(folder / SUMS_FILE):
        return Sums(recorded=False)
    try:
        listed = _read(folder)
    except (PackError, ValueError) as error:
        return Sums(recorded=True, altered=(f"{SUMS_FILE}: {error}",))
    found = [problem for name, expected in listed.items() if (problem := _problem(folder, name, expected))]
    found += [
        f"{name} is not in {SUMS_FILE}"
        for name in RAW_FILES
        if name not in listed and (name == RUN_FILE or os.path.lexists(folder / name))
    ]
    return Sums(recorded=True, altered=tuple(found))


def _read(folder: Path) -> dict[str, str]:
    listed: dict[str, str] = {}
    lines = read_small(folder, SUMS_FILE, MAX_BYTES).decode("ascii").splitlines()
    for number, line in enumerate(lines, start=1):
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"line {number}: expected `<sha256>  <file>`")
        listed[found[2]] = found[1]
    return listed


def _problem(folder: Path, name: str, expected: str) -> str | None:
    if not os.path.lexists(folder / name):
        return f"{name} is gone"
    try:
        found = _sha256(folder, name)
    except PackError as error:
        return str(error)
    return None if found == expected else f"{name} was changed (sha256 {found[:12]}, written {expected[:12]})"


def _sha256(folder: Path, name: str) -> str:
    descriptor = open_regular(folder, name)
    try:
        return sha256_descriptor(descriptor)
    finally:
        os.close(descriptor)


def altered_line(path: Path, sums: Sums) -> str:
    """What is wrong with a directory whose files are not those that were written, and the fix."""
    return (
        f"{path}: altered after it was written: {'; '.join(sums.altered)}; bring the files back "
        f"(git checkout -- {path}) or measure again"
    )
