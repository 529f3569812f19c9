"""The folder of results, read only: its runs as rows for `results.list`, and the one that a name means.

Nothing in the folder is trusted: names, types and sizes are checked, and one bad record never hides the
others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lean.bench.index import Entries, files_state, index_file, read_index, write_index
from lean.bench.record import RUN_FILE, RunRecord, read_run
from lean.bench.run_row import BrokenRun, RunRow, row_data, run_row
from lean.bench.sums import altered_line, check_sums
from lean.errors import ContractError, IntegrityError, UsageError
from lean.markdown import plain

VERSION = "v1"
NOT_RUNS = (
    *("verify", "gate", "portability", "kernels", "tune"),
    *("costs", "transfers", "in_process", "oracle", "accuracy", "regions"),
    *("baseline", "versus", "sweeps", "soak"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunList:
    """Every run below a results root, oldest first within host and profile."""

    rows: tuple[RunRow, ...]
    broken: tuple[BrokenRun, ...]


def list_runs(results_root: Path, cache: Path | None = None) -> RunList:
    """All runs below `<results_root>/v1`.

    An unreadable or altered record becomes a `BrokenRun`; a missing folder is empty. `cache`: a folder for
    what was read of runs whose files have not changed since, see `lean.bench.index`.
    """
    file = index_file(cache, results_root) if cache else None
    known = read_index(file) if file else {}
    found: list[RunRow | BrokenRun] = []
    kept: Entries = {}
    whole = False
    try:
        for name in _run_directories(results_root / VERSION):
            state = files_state(name)
            mark, data = known.get(name, ("", {}))
            run = _remembered(data) if mark == state.mark else None
            if run is None:
                run = _look(Path(name))
                data = row_data(run)
            found.append(run)
            if state.settled:
                kept[name] = (state.mark, data)
        whole = True
    finally:  # what an interrupted listing has read is not lost
        if file and kept != known:
            write_index(file, kept if whole else known | kept)
    return RunList(
        rows=tuple(run for run in found if isinstance(run, RunRow)),
        broken=tuple(run for run in found if isinstance(run, BrokenRun)),
    )


def find_run(results_root: Path, name: str) -> Path:
    """The one run a user means: a path, `latest`, or the start of a run's name.

    Errors: `UsageError` when none or several fit.
    """
    known = _run_directories(results_root / VERSION)
    if name == "latest" and known:
        return Path(max(known, key=os.path.basename))
    fitting = [path for path in known if name and os.path.basename(path).startswith(name)]
    if len(fitting) == 1:
        return Path(fitting[0])
    if not fitting and (Path(name) / RUN_FILE).is_file():
        return Path(name)
    problem = f"{len(fitting)} runs start with" if fitting else "no run is named"
    raise UsageError(f"{problem} {name!r} below {results_root}; `results.list` shows what is there")


def read_unaltered(path: Path) -> RunRecord:
    """One run whose files are those that were written, as far as sums were recorded.

    Errors: `IntegrityError` naming each file that is not; else those of `read_run`.
    """
    folder = path if path.is_dir() else path.parent
    sums = check_sums(folder)
    if sums.altered:
        raise IntegrityError(plain(altered_line(folder, sums)))
    return read_run(path)


def _look(path: Path) -> RunRow | BrokenRun:
    sums = check_sums(path)
    problem = ""
    try:
        record = _read_in_place(path)
        if not sums.altered:
            return run_row(record, path, sums)
    except ContractError as error:
        problem = str(error)
    if sums.altered:
        problem = "; ".join(filter(None, (altered_line(path, sums), problem)))
    kind: Literal["unreadable", "altered"] = "altered" if sums.altered else "unreadable"
    return BrokenRun(path=plain(str(path)), problem=plain(problem), kind=kind)


def _remembered(data: dict[str, Any]) -> RunRow | BrokenRun | None:
    try:
        return BrokenRun(**data) if "problem" in data else RunRow(**data)
    except TypeError:
        return None


def _read_in_place(path: Path) -> RunRecord:
    record = read_run(path)
    if path.parts[-4:] != record.place.parts:
        raise ContractError(f"{path / RUN_FILE}: belongs at {record.place}; it was moved or renamed")
    return record


def _run_directories(version: Path) -> tuple[str, ...]:
    """Directories three levels down: host, profile, run; sorted.

    Hidden ones are unfinished, links are not followed, and proofs and costs lie in the same folder and are no
    runs. Names, not paths: of ten thousand those take longer to make than the folder to read.
    """

    def below(folders: Iterable[str]) -> Iterator[str]:
        for folder in folders:
            with os.scandir(folder) as entries:
                names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
            yield from (f"{folder}/{name}" for name in names if name not in NOT_RUNS and name[0] != ".")

    if not version.is_dir():
        return ()
    return tuple(below(below(below((str(version),)))))
