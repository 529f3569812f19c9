"""A sweep's folder: `results/v1/<host>/sweeps/<UTC>-<name>/` with the journal and its summary.

The journal is replaced in one step after every change, so a sweep that was killed goes on where it was. Run
directories lie where every run does; the journal only names them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lean.contracts import from_data, to_data
from lean.errors import ContractError, PreflightError, UsageError
from lean.files.exclusive import hold
from lean.files.staging import named_disk_errors, replace_file
from lean.strict_json import parse_object
from remote.appliance.sweep_plan import Cell, Sweep, SweepPlan, plan_cells
from remote.appliance.sweep_summary import summary_page
from remote.paths import STATE

JOURNAL = "sweep.json"


class Journal:
    """One sweep and its folder, which a new one has not got before it is real."""

    def __init__(self, sweep: Sweep, folder: Path | None) -> None:
        self.sweep, self.folder = sweep, folder
        self._writes = folder is not None

    def put(self, index: int, cell: Cell) -> Cell:
        """Change one cell and save. Errors: `PreflightError` for a full or closed disk."""
        self.save(self.sweep.with_cell(index, cell))
        return cell

    def save(self, sweep: Sweep) -> None:
        """Make `sweep` what the folder holds, its summary with it."""
        self.sweep = sweep
        if self.folder is None or not self._writes:
            return
        with named_disk_errors(self.folder, "the sweep's journal"):
            replace_file(self.folder / JOURNAL, json.dumps(to_data(sweep), indent=1) + "\n")
            replace_file(self.folder / "summary.md", summary_page(sweep))

    @contextmanager
    def lock(self, *, dry_run: bool = False) -> Iterator[None]:
        """Held while the sweep runs; what another process did until then is read anew.

        A dry run holds and writes nothing. Errors: `PreflightError` naming the process that runs it already.
        """
        if self.folder is None or dry_run:
            self._writes = False
            yield
            return
        with hold(
            STATE / "sweeps" / f"{self.sweep.host}-{self.folder.name}.lock", f"sweep {self.folder.name}"
        ):
            self.sweep = _read(self.folder / JOURNAL)
            yield


def open_journal(results: Path, host: str, name: str, plan: SweepPlan, *, dry_run: bool = False) -> Journal:
    """The newest unfinished sweep of this name and plan, else a new one in a folder of its own.

    `dry_run`: nothing is made, and a new sweep has no folder.

    Errors: those of `plan_cells`; `PreflightError` when the folder cannot be made.
    """
    for journal in reversed(_journals(results, host, name)):
        if journal.sweep.plan == plan and journal.sweep.missing:
            return journal
    now = datetime.now(UTC)
    sweep = Sweep(
        name=name,
        host=host,
        started_utc=now.isoformat(timespec="milliseconds"),
        plan=plan,
        cells=plan_cells(plan),
    )
    if dry_run:
        return Journal(sweep, None)
    stamp = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}Z"
    folder = sweeps(results, host) / f"{stamp}-{name}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise PreflightError(f"{folder}: cannot be made: {error.strerror}; give another --results") from None
    journal = Journal(sweep, folder)
    journal.save(sweep)
    return journal


def find_journal(results: Path, host: str, name: str) -> Journal:
    """The newest sweep of this name, or the one whose folder's name begins so.

    Errors: `UsageError` when there is none, `ContractError` for a journal that cannot be read.
    """
    found = _journals(results, host, name)
    if not found:
        known = ", ".join(path.name for path in _folders(results, host)) or "none"
        raise UsageError(f"no sweep {name!r} in {sweeps(results, host)}; there: {known}")
    return found[-1]


def sweeps(results: Path, host: str) -> Path:
    """Where the sweeps of a host lie."""
    return results / "v1" / host / "sweeps"


def _journals(results: Path, host: str, name: str) -> list[Journal]:
    """Sweeps that a name means, the oldest first."""
    fitting = [
        folder
        for folder in _folders(results, host)
        if folder.name.partition("-")[2] == name or (name and folder.name.startswith(name))
    ]
    return [Journal(_read(folder / JOURNAL), folder) for folder in fitting]


def _folders(results: Path, host: str) -> list[Path]:
    return sorted(file.parent for file in sweeps(results, host).glob(f"*/{JOURNAL}"))


def _read(file: Path) -> Sweep:
    try:
        return from_data(Sweep, parse_object(file.read_bytes()), str(file))
    except OSError as error:
        raise ContractError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ContractError(f"{file}: no journal of a sweep: {error}") from None
