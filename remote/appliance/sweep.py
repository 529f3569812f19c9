"""Several profiles, runs and settings on one host, a run directory each; what is missing can follow."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from lean.errors import (
    Interrupted,
    InvalidRunError,
    LeanError,
    NotReadyError,
    UnreachableError,
    from_document,
)
from remote.appliance.alone import BENCH_JOB, SERVE_JOB, check_alone
from remote.appliance.bench import BenchRequest, bench, runner_of
from remote.appliance.measured import Measured
from remote.appliance.models import newest_pack
from remote.appliance.service import ServeRequest, own_service, running
from remote.appliance.sweep_journal import Journal
from remote.appliance.sweep_plan import Cell, Problem, Setting, State, by_service, figures_of
from remote.host.site import Site
from remote.ssh.command import command_line


def run_sweep(site: Site, journal: Journal, *, results: Path) -> None:
    """Measure what the journal's sweep lacks, cell by cell, and put into it what becomes of each.

    A cell that fails is recorded, and the rest goes on. Errors: `Interrupted` and `UnreachableError` end it,
    for all that is left would fail too; what was measured is kept, and the message says how to go on.
    """
    sweep = journal.sweep
    if sweep.missing and sweep.pack is None:
        pack = PurePosixPath(str(sweep.plan.pack or newest_pack(site))).name
        journal.save(replace(sweep, pack=pack))
    try:
        for setting, indices in by_service(journal.sweep):
            _on_one_service(site, journal, setting, indices, results)
    except (Interrupted, UnreachableError) as error:
        raise type(error)(f"{error}; go on with: {resume_command(journal)}") from None
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; go on with: {resume_command(journal)}") from None


def resume_command(journal: Journal) -> str:
    """What goes on with a sweep, as a person types it."""
    words = ["invoke", "remote.sweep", "--host", journal.sweep.host, "--resume"]
    if journal.folder is None:
        return command_line([*words, journal.sweep.name])
    results = journal.folder.parents[3]
    elsewhere = () if results == Path("results") else ("--results", str(results))
    return command_line([*words, journal.folder.name, *elsewhere])


def sweep_failure(journal: Journal) -> LeanError | None:
    """The first problem of a sweep whose cells do not all count, saying how many; None when they do."""
    found = [cell for cell in journal.sweep.cells if cell.state != "done"]
    if not found:
        return None
    failed = [cell for cell in found if cell.problem is not None and cell.state != "invalid"]
    worst = (failed or found)[0]
    problem = worst.problem or Problem(kind=InvalidRunError.__name__, message=worst.state, exit_code=7)
    lacks = f"; go on with: {resume_command(journal)}" if journal.sweep.missing else ""
    message = (
        f"{len(found)} of {len(journal.sweep.cells)} cells have no run that counts, "
        f"the first is {worst.name}: {problem.message}{lacks}"
    )
    return from_document({"error": {"kind": problem.kind, "message": message}})


def _on_one_service(
    site: Site, journal: Journal, setting: Setting, indices: list[int], results: Path
) -> None:
    """Cells that one service can measure; when it dies, another is started for the rest.

    When it does not start, none of them was tried, and each says so.
    """
    left = deque(indices)
    try:
        while left:
            with _kept_service(site, journal, setting) as service:
                while left:
                    state = _measure(site, journal, left.popleft(), service, results)
                    if state == "failed" and service is not None and running(site) is None:
                        break
    except (Interrupted, UnreachableError):
        raise
    except LeanError as error:
        for index in left:
            cell = journal.sweep.cells[index].again()
            journal.put(index, replace(cell, state="failed", problem=_problem(error)))
        site.console.line(f"failed, {len(left)} cell(s) not measured: {error}")


def _measure(
    site: Site, journal: Journal, index: int, service: dict[str, Any] | None, results: Path
) -> State:
    """One cell, through the states of its journal; the last of them."""
    plan = journal.sweep.plan
    site.console.phase(f"cell {index + 1} of {len(journal.sweep.cells)}: {journal.sweep.cells[index].name}")
    cell = journal.put(index, journal.sweep.cells[index].again())
    request = BenchRequest(
        profile=cell.setting.profile,
        pack=_pack(site, journal),
        requests=plan.requests,
        warmup=plan.warmup,
        runner=cell.setting.runner,
        allow_uncleared=plan.allow_uncleared,
        split_k=cell.setting.split_k,
        load=cell.how,
    )
    try:
        done = bench(site, request, results=results, service=service)
    except (Interrupted, KeyboardInterrupt):
        journal.put(index, replace(cell, state="interrupted"))
        with suppress(NotReadyError):
            site.stop(BENCH_JOB)
        raise
    except LeanError as error:
        cell = journal.put(index, replace(cell, state="failed", problem=_problem(error)))
        if isinstance(error, UnreachableError):
            raise
        site.console.line(f"failed: {error}")
    else:
        cell = journal.put(index, _measured(cell, done, results))
    return cell.state


def _measured(cell: Cell, done: Measured, results: Path) -> Cell:
    """The cell with what came home."""
    status = str(done.document.get("status"))
    return replace(
        cell,
        state="done" if done.error is None else "invalid" if status == "invalid" else "failed",
        place=done.path.relative_to(results).as_posix(),
        label=str(done.document.get("label")),
        figures=figures_of(done.document),
        problem=None if done.error is None else _problem(done.error),
    )


def _pack(site: Site, journal: Journal) -> str:
    """The pack's path on the host; a journal is published and keeps its name, for a path names a home."""
    return journal.sweep.plan.pack or f"{site.paths.packs}/{journal.sweep.pack}"


def _problem(error: LeanError) -> Problem:
    return Problem(kind=type(error).__name__, message=str(error), exit_code=error.exit_code)


@contextmanager
def _kept_service(site: Site, journal: Journal, setting: Setting) -> Iterator[dict[str, Any] | None]:
    """A service for several cells; None where one runs already, which cells check, or each starts one."""
    plan = journal.sweep.plan
    if plan.fresh or running(site) is not None:
        yield None
        return
    check_alone(site, SERVE_JOB)
    runner = setting.runner or runner_of(site)
    request = ServeRequest(
        pack=_pack(site, journal),
        slots=setting.slots,
        runner=runner,
        allow_uncleared=plan.allow_uncleared,
        split_k=setting.split_k,
    )
    site.console.phase(f"start the service that the next cells share: {runner}, {setting.slots} slot(s)")
    with own_service(site, request, job=BENCH_JOB) as ready:
        yield ready
