"""The versioned results folder, read only."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from invoke import Collection

from remote.console import Console
from remote.tasks.verb import verb

if TYPE_CHECKING:
    from lean.bench.results import ShownRun


@verb(
    root="the results folder of a checkout",
    host="only runs of this host",
    profile="only runs of this profile",
)
def list_(
    console: Console, root: str = "results", host: str | None = None, profile: str | None = None
) -> None:
    """Every run, one line each; what cannot be read is listed with its problem."""
    from lean.bench.results import list_runs

    found = list_runs(Path(root))
    rows = [r for r in found.rows if host in (None, r.host) and profile in (None, r.profile)]

    def show() -> None:
        columns = ("run", "status", "label", "tokens/s", "TTFT ms", "TPOT ms")
        cells = [
            (
                f"{r.host}/{r.profile}/{r.id}",
                r.status,
                r.label,
                number(r.tokens_per_s_median),
                number(r.ttft_s_median, 1000.0),
                number(r.tpot_s_median, 1000.0),
            )
            for r in rows
        ]
        console.table(columns, cells)
        for broken in found.broken:
            console.problem(f"{broken.path}: {broken.problem}")

    console.result({"runs": [asdict(r) for r in rows], "broken": [asdict(b) for b in found.broken]}, show)


@verb(run="a run's directory, the start of its name, or `latest`", root="the results folder of a checkout")
def show(console: Console, run: str = "latest", root: str = "results") -> None:
    """One run in full: what ran, where, its label and why, its metrics, and whether it counts."""
    from lean.bench.results import find_run, show_run

    path = find_run(Path(root), run)
    shown = show_run(path)
    console.result(asdict(shown) | {"path": str(path)}, lambda: run_table(console, path, shown))


def run_table(console: Console, path: Path, shown: ShownRun) -> None:
    """How one run is shown: its facts, its metrics, why it may not count, and its files."""
    console.table(("", ""), shown.facts)
    rows = [
        (
            m.name,
            m.unit,
            *tuple(
                number(v) for v in (m.values.median, m.values.mean, m.values.std, m.values.p95, m.values.p99)
            ),
            str(m.values.count),
        )
        for m in shown.metrics
    ]
    console.table(("metric", "unit", "median", "mean", "std", "p95", "p99", "n"), rows)
    for reason in shown.reasons:
        console.line(f"does not count: {reason}")
    console.line(f"{path}: {', '.join(shown.files)}")


def number(value: float | None, factor: float = 1.0) -> str:
    """Three significant places at most, or a dash for what was not measured."""
    return "-" if value is None else f"{value * factor:.2f}"


namespace = Collection("results", list=list_, show=show)
