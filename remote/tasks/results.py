"""The versioned results folder, read only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from invoke import Collection

from lean.errors import IntegrityError
from remote.console import Console
from remote.tasks import evidence
from remote.tasks.verb import exit_with, verb

if TYPE_CHECKING:
    from lean.bench.results import RunList
    from lean.bench.run_row import BrokenRun, RunRow
    from lean.bench.shown_run import MetricRow, ShownRun
    from remote.appliance.measured import Measured


@verb(
    results="the results folder of a checkout",
    host="only runs of this host",
    profile="only runs of this profile",
)
def list_(
    console: Console, results: str = "results", host: str | None = None, profile: str | None = None
) -> None:
    """List every run, one line each; what cannot be read is listed with its problem."""
    from lean.bench.run_row import row_data

    found = listed(results)
    rows = [r for r in found.rows if host in (None, r.host) and profile in (None, r.profile)]

    def show() -> None:
        columns = ("run", "status", "label", "tokens/s", "TTFT ms", "TPOT ms", "files")
        console.table(columns, run_cells(rows))
        name_broken(console, found.broken)

    kept = (rows, found.broken) if console.as_json else ((), ())  # ten thousand rows cost, looked at or not
    runs, broken = ([row_data(run) for run in part] for part in kept)
    console.result({"runs": runs, "broken": broken}, show)


def listed(results: str) -> RunList:
    """Every run of a results folder; what was read before and has not changed comes from `.lean/results`."""
    from lean.bench.results import list_runs
    from remote.paths import STATE

    return list_runs(Path(results), STATE / "results")


def name_broken(console: Console, found: Sequence[BrokenRun]) -> None:
    """One line on standard error for each directory that is no sound run."""
    for broken in found:
        console.problem(f"{broken.kind}: {broken.problem}")


@verb(run="a run's directory, the start of its name, or `latest`", results="the results folder of a checkout")
def show(console: Console, run: str = "latest", results: str = "results") -> None:
    """Show one run in full: what ran, where, its label and why, its metrics, and whether it counts."""
    from lean.bench.results import find_run
    from lean.bench.shown_run import show_run

    path = find_run(Path(results), run)
    shown = show_run(path)
    console.result(asdict(shown) | {"path": str(path)}, lambda: run_table(console, path, shown))
    if shown.altered:
        raise exit_with(IntegrityError(f"{path}: altered after it was written: {'; '.join(shown.altered)}"))


def show_measured(console: Console, run: Measured) -> None:
    """Render a run that was just measured. Ends with its exit code when it does not count."""
    from lean.bench.shown_run import show_run

    document = run.document | {"path": str(run.path)}
    console.result(document, lambda: run_table(console, run.path, show_run(run.path)))
    if run.error is not None:
        raise exit_with(run.error)


def run_table(console: Console, path: Path, shown: ShownRun) -> None:
    """How one run is shown: its facts, its metrics, why it may not count, and its files."""
    console.table(("", ""), shown.facts)
    rows = [metric_cells(m) for m in shown.metrics]
    console.table(("metric", "unit", "median", "mean", "std", "p95", "p99", "n"), rows)
    for reason in shown.reasons:
        console.line(f"does not count: {reason}")
    console.line(f"{path}: {', '.join(shown.files)}")


def run_cells(rows: Sequence[RunRow]) -> list[tuple[str, ...]]:
    """The lines of `results.list`."""
    from lean.markdown import number_or_dash

    def named(row: RunRow) -> str:
        return f"{row.host}/{row.profile}/{row.id}" + (f" ({row.load})" if row.load else "")

    return [
        (
            *(named(row), row.status, row.label, number_or_dash(row.tokens_per_s_median)),
            *(number_or_dash(row.ttft_s_median, 1e3), number_or_dash(row.tpot_s_median, 1e3), row.sums),
        )
        for row in rows
    ]


def metric_cells(row: MetricRow) -> tuple[str, ...]:
    """One line of a run's metrics."""
    from lean.markdown import number_or_dash

    v = row.values
    return row.name, row.unit, *map(number_or_dash, (v.median, v.mean, v.std, v.p95, v.p99)), str(v.count)


namespace = Collection("results", evidence.compare, evidence.export, evidence.plot, list=list_, show=show)
