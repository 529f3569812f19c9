"""What is made of kept runs: a regression check, figures, tables for other programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lean.errors import GateError, PreflightError, UsageError
from remote.console import Console
from remote.tasks.verb import exit_with, verb

if TYPE_CHECKING:
    from lean.bench.compare import ComparedMetric, Comparison


@verb(
    baseline="the run that is compared with: its directory, the start of its name, or `latest`",
    candidate="the run in question",
    threshold="percent that count as noise; by default what the two runs' own rounds spread",
    across="what may differ, comma-separated: contract, profile, machine, backend, weights, validity",
    results="the results folder of a checkout",
)
def compare(
    console: Console,
    baseline: str,
    candidate: str,
    threshold: str | None = None,
    across: str | None = None,
    results: str = "results",
) -> None:
    """Say of each metric whether it got better or worse between two runs; a regression ends with 5.

    Runs that are not comparable are refused (7), and so are altered ones (8).
    """
    from lean.bench.comparable import axes_named
    from lean.bench.compare import Rules, change_line, compare_runs
    from lean.bench.results import find_run, read_unaltered

    rules = Rules(threshold_percent=_percent(threshold), across=axes_named(across))
    first, second = (read_unaltered(find_run(Path(results), run)) for run in (baseline, candidate))
    found = compare_runs(first, second, rules)
    console.result(_document(found), lambda: _show(console, found))
    if found.regressed:
        told = "; ".join(change_line(one) for one in found.regressed)
        raise exit_with(GateError(f"{found.second} is worse than {found.first}: {told}"))


@verb(
    format="csv, md or json",
    out="a new file, or a new folder with --samples in csv; standard output when left out",
    samples="every request too, with every arrival time; csv then wants --out",
    host="only runs of this host",
    profile="only runs of this profile",
    results="the results folder of a checkout",
)
def export(
    console: Console,
    format: str = "csv",
    out: str | None = None,
    samples: bool = False,
    host: str | None = None,
    profile: str | None = None,
    results: str = "results",
) -> None:
    """Export every metric of every run: median, mean, std, p95, p99, n, and on request the raw samples."""
    from lean.bench.export import export_runs, export_texts, format_named, write_texts
    from remote.tasks.results import listed, name_broken

    wanted = format_named(format)
    runs = listed(results)
    rows = [r for r in runs.rows if host in (None, r.host) and profile in (None, r.profile)]
    found = export_runs(rows, runs.broken, samples=samples)
    texts = export_texts(found, wanted)
    name_broken(console, found.broken)
    if out is not None:
        console.result({"files": [str(file) for file in write_texts(texts, Path(out))]})
    elif len(texts) > 1:
        raise UsageError("--samples in csv are a second table: give a folder for both, --out FOLDER")
    else:
        console.result(found.document(), lambda: console.text("".join(texts.values())))


@verb(
    runs="runs to draw together, comma-separated: directories, starts of names, or `latest`",
    out="the folder for the figures",
    results="the results folder of a checkout",
)
def plot(console: Console, runs: str = "latest", out: str = "figures", results: str = "results") -> None:
    """Draw time per token over position, latency distributions, and throughput over batch, as PNG.

    Throughput takes every sound run of the first one's machine, contract and shape, at any batch.
    """
    from lean.bench.results import find_run, read_unaltered
    from remote.tasks.results import listed

    try:
        from lean.bench.figures import draw_figures, runs_like
    except ImportError as error:
        raise PreflightError(
            f"{error}; drawing needs: pip install -c constraints.txt -e '.[evidence]'"
        ) from None

    chosen = [read_unaltered(find_run(Path(results), name.strip())) for name in runs.split(",")]
    batches = runs_like(chosen[0], listed(results).rows)
    files = draw_figures(chosen, batches, Path(out))
    console.result({"files": [str(file) for file in files]})


def _percent(given: str | None) -> float | None:
    try:
        return None if given is None else float(given)
    except ValueError:
        raise UsageError(f"--threshold {given!r}: expected a number of percent") from None


def _document(found: Comparison) -> dict[str, Any]:
    rows = [asdict(one) | {"change_percent": one.change_percent} for one in found.compared]
    return asdict(found) | {"compared": rows, "regressed": [one.metric for one in found.regressed]}


def _show(console: Console, found: Comparison) -> None:
    console.table(("", "run"), (("A", found.first), ("B", found.second)))
    if found.differences:
        rows = [(d.what, d.first, d.second) for d in found.differences]
        console.table(("what differs", "A", "B"), rows)
    columns = ("metric", "unit", "n", "median A", "median B", "change", "95 % of B/A", "best A", "best B")
    console.table((*columns, "change", "noise", "verdict"), [_cells(one) for one in found.compared])
    for metric in found.missing:
        console.line(f"{metric}: not in both runs")


def _cells(one: ComparedMetric) -> tuple[str, ...]:
    from lean.markdown import number

    interval = one.interval
    n = one.counts[0] if one.counts[0] == one.counts[1] else f"{one.counts[0]}, {one.counts[1]}"
    return (
        *(one.metric, one.unit, str(n), *map(number, one.medians), f"{one.change_percent:+.2f} %"),
        "-" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}",
        *(*map(number, one.best), f"{100 * (one.best_ratio - 1):+.2f} %"),
        *(f"{one.noise_percent:.1f} %", one.verdict),
    )
