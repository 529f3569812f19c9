"""The ledger of iterations: what each cost in tokens, how soon it was right, and how many lines it changed.

One JSON object a line in `results/ledger.jsonl`, appended under a lock and never rewritten. A line that was
torn by a crash is named and hides no other. Standard library, git as a child process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal

from lean.contracts import from_data, to_data
from lean.errors import ContractError, PreflightError, UsageError
from lean.strict_json import parse_object

Parity = Literal["passed", "failed"]
Layer = Literal["kernels", "runtime", "control_plane", "other"]

_CONTROL_PLANE = ("remote/", "tasks.py", "hosts.yaml", "profiles/")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Lines added and deleted."""

    added: int = 0
    deleted: int = 0

    def __post_init__(self) -> None:
        for name in ("added", "deleted"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")

    def __add__(self, other: Lines) -> Lines:
        return Lines(added=self.added + other.added, deleted=self.deleted + other.deleted)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesByLayer:
    """Lines of `kernels/`, of `lean/` (it runs on the host), of what runs on the laptop, and of the rest.

    `range` names the commits they were counted between, in full.
    """

    range: str
    kernels: Lines = Lines()
    runtime: Lines = Lines()
    control_plane: Lines = Lines()
    other: Lines = Lines()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One iteration.

    `first_correct_s` is None where no output was correct, `lines` where nobody counted.
    """

    SCHEMA: ClassVar[str] = "ledger/v1"

    at_utc: str
    contract: str
    prompt_tokens: int
    response_tokens: int
    first_correct_s: float | None
    parity: Parity
    lines: LinesByLayer | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "response_tokens", "first_correct_s"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}: expected 0 or more, got {value}")
        if _NAME.fullmatch(self.contract) is None:
            raise ValueError(f"contract: expected a contract's name, got {self.contract[:40]!r}")
        if self.parity == "passed" and self.first_correct_s is None:
            raise ValueError("first_correct_s: parity passed, so some output was correct: say after how long")


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line of the ledger that is no entry. `number` counts from 1."""

    number: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All entries in the order they were added, and what could not be read."""

    entries: tuple[Entry, ...]
    bad: tuple[BadLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The iterations of one contract together. `fastest_correct_s`: the least time to a correct output."""

    contract: str
    iterations: int
    passed: int
    prompt_tokens: int
    response_tokens: int
    fastest_correct_s: float | None
    kernels: Lines
    runtime: Lines
    control_plane: Lines
    other: Lines
    uncounted: int

    @property
    def tokens(self) -> int:
        """Prompt and response together."""
        return self.prompt_tokens + self.response_tokens


def new_entry(
    *,
    contract: str,
    prompt_tokens: int | None,
    response_tokens: int | None,
    first_correct_s: float | None,
    parity: str,
    lines: LinesByLayer | None = None,
    note: str = "",
) -> Entry:
    """An entry of now. Errors: `UsageError` naming the field that cannot be."""
    fields = {
        "schema": Entry.SCHEMA,
        "at_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "contract": contract,
        "prompt_tokens": prompt_tokens,
        "response_tokens": response_tokens,
        "first_correct_s": first_correct_s,
        "parity": parity,
        "lines": to_data(lines),
        "note": note,
    }
    try:
        return from_data(Entry, fields, "ledger.add")
    except ContractError as error:
        raise UsageError(str(error)) from None


def append_entry(file: Path, entry: Entry) -> None:
    """Add one line, whole and on the disk before this returns. Waits for whoever writes just now.

    A line that a crash tore is ended first, so that it spoils no other. Errors: `PreflightError` naming the
    file when it cannot be written; it then holds what it held before.
    """
    line = (json.dumps(to_data(entry), allow_nan=False) + "\n").encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new = not file.exists()
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            _write(descriptor, (b"\n" if torn else b"") + line, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            _sync_folder(file.parent)
    except OSError as error:
        raise PreflightError(f"{file}: cannot be written: {error.strerror}; name another --ledger") from None


def read_ledger(file: Path) -> Ledger:
    """Every entry of a ledger; a missing one is empty. Errors: `PreflightError` when it cannot be read."""
    try:
        lines = file.read_bytes().split(b"\n") if file.exists() else []
    except OSError as error:
        raise PreflightError(f"{file}: cannot be read: {error.strerror}") from None
    entries: list[Entry] = []
    bad: list[BadLine] = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            entries.append(from_data(Entry, parse_object(line), f"{file}: line {number}"))
        except ContractError as error:
            bad.append(BadLine(number=number, problem=str(error)))
        except ValueError as error:
            torn = "; its end is missing, the writer was cut off" if number == len(lines) else ""
            bad.append(BadLine(number=number, problem=f"{file}: line {number}: {error}{torn}"))
    return Ledger(entries=tuple(entries), bad=tuple(bad))


def totals(entries: Iterable[Entry]) -> tuple[Totals, ...]:
    """The entries by contract, by name."""
    by_contract: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_contract[entry.contract].append(entry)
    return tuple(_totals(name, found) for name, found in sorted(by_contract.items()))


def lines_changed(root: Path, between: str) -> LinesByLayer:
    """Lines by layer between two commits, `A..B`, as git counts; a rename is a deletion and an addition.

    Errors: `UsageError` for a range that is none or that git does not know.
    """
    ends = between.split("..")
    if len(ends) != 2 or not all(ends) or any(end.startswith((".", "-")) for end in ends):
        raise UsageError(f"--range {between!r}: expected two commits, A..B")
    first, last = (_git(root, between, "rev-parse", "--verify", f"{end}^{{commit}}").strip() for end in ends)
    counted: dict[Layer, Lines] = defaultdict(Lines)
    for change in _git(root, between, "diff", "--numstat", "--no-renames", "-z", first, last).split("\0"):
        if change:
            added, deleted, path = change.split("\t", 2)
            if added != "-":  # a binary file has no lines
                counted[layer_of(path)] += Lines(added=int(added), deleted=int(deleted))
    return LinesByLayer(range=f"{first}..{last}", **counted)


def layer_of(path: str) -> Layer:
    """The layer a path of the repository belongs to."""
    if path.startswith("kernels/"):
        return "kernels"
    if path.startswith("lean/"):
        return "runtime"
    return "control_plane" if path.startswith(_CONTROL_PLANE) else "other"


def _totals(contract: str, entries: list[Entry]) -> Totals:
    correct = [entry.first_correct_s for entry in entries if entry.first_correct_s is not None]
    counted = [entry.lines for entry in entries if entry.lines is not None]
    return Totals(
        contract=contract,
        iterations=len(entries),
        passed=sum(entry.parity == "passed" for entry in entries),
        prompt_tokens=sum(entry.prompt_tokens for entry in entries),
        response_tokens=sum(entry.response_tokens for entry in entries),
        fastest_correct_s=min(correct, default=None),
        kernels=sum((lines.kernels for lines in counted), Lines()),
        runtime=sum((lines.runtime for lines in counted), Lines()),
        control_plane=sum((lines.control_plane for lines in counted), Lines()),
        other=sum((lines.other for lines in counted), Lines()),
        uncounted=len(entries) - len(counted),
    )


def _write(descriptor: int, data: bytes, size: int) -> None:
    """All of it or nothing: a disk that fills up in the middle must leave no half a line."""
    try:
        if os.write(descriptor, data) < len(data):
            raise OSError(28, "the disk is full")
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _git(root: Path, between: str, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, errors="surrogateescape"
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["git does not answer"])[-1]
        raise UsageError(f"--range {between!r}: {said}")
    return done.stdout
