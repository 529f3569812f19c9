"""One other system measured once or several times, and what became of it as a record, failures included."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.contracts.systems import BEST_OF
from lean.errors import Interrupted, LeanError, UnreachableError, UsageError, error_document
from lean.markdown import number_or_dash
from remote.appliance.alone import BASELINE_JOB, check_alone
from remote.appliance.baseline import BaselineRequest, measure_baseline, own_baseline
from remote.appliance.costs import page, record_head, where_and_when, write_record
from remote.host.site import Site

SCHEMA = "baseline/v1"
KIND = "baseline"
MODES = ("plain", "best")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRun:
    """What became of it, `state`: measured, not measured, interrupted or link lost; with `error` why."""

    document: dict[str, Any]
    error: LeanError | None


def count_of(mode: str, runs: int | None) -> int:
    """How many runs a mode takes. Errors: `UsageError` for another mode, or fewer than it needs."""
    least = {"plain": 1, "best": BEST_OF}
    if mode not in least:
        raise UsageError(f"--mode {mode}: expected {' or '.join(MODES)}")
    if runs is not None and runs < least[mode]:
        raise UsageError(f"--runs {runs}: {mode} takes {least[mode]} or more")
    return runs or least[mode]


def run_baseline(site: Site, request: BaselineRequest, *, mode: str, runs: int, results: Path) -> BaselineRun:
    """Measure it `runs` times, and say what became of it; the runs come home below `results`.

    A system that cannot be had or does not start is an outcome with its reason; Ctrl-C and a lost link are
    outcomes too, with the runs that came home before. Errors: `PreflightError` for a host that is busy.
    """
    check_alone(site, BASELINE_JOB)
    document: dict[str, Any] = {
        **record_head(SCHEMA, site.name),
        "system": request.system,
        "contract": site.host.contract,
        "profile": request.profile,
        "mode": mode,
        "state": "measured",
        "runs": [],
    }
    error: LeanError | None = None
    try:
        with own_baseline(site, request) as own:
            document |= {name: own.ready[name] for name in ("version", "command", "packages", "memory")}
            for turn in range(runs):
                site.console.line(f"{request.system}: run {turn + 1} of {runs}")
                run = measure_baseline(site, own.ready, request.profile, results=results)
                document["runs"].append({"run": run.path.name, **_figures(run.document)})
                error = error or run.error
        document["ended"] = own.ended
    except KeyboardInterrupt:
        what = f"interrupted; see what still runs there: invoke remote.jobs --host {site.name}"
        error, document["state"] = Interrupted(what), "interrupted"
    except Interrupted as problem:
        error, document["state"] = problem, "interrupted"
    except UnreachableError as problem:
        error, document["state"] = problem, "link lost"
    except LeanError as problem:
        error, document["state"] = problem, "not measured"
    counted = [run["tokens_per_s"] for run in document["runs"] if run["status"] == "ok"]
    rates = [rate for rate in counted if isinstance(rate, float)]
    if rates:
        document |= {"plain": rates[0], "median": statistics.median(rates), "best": max(rates)}
    if error is not None:
        document |= error_document(error)
    return BaselineRun(document=document, error=error)


def keep_baseline(found: BaselineRun, results: Path) -> Path:
    """Write its record below `results`. Errors: `UsageError` when that record exists."""
    document = found.document
    rows = [
        (run["run"], run["status"], number_or_dash(run["tokens_per_s"]), number_or_dash(run["ttft_s"], 1e3))
        for run in document["runs"]
    ]
    intro = f"{where_and_when(document)} Contract {document['contract']}, {document['profile']}: "
    intro += document["state"] + (f": {document['error']['message']}" if "error" in document else "")
    title = f"{document['system']} {document.get('version', '')}".strip()
    columns = ("run", "status", "tokens/s", "TTFT ms")
    return write_record(document, KIND, results, page(title, intro, columns, rows))


def _figures(document: dict[str, Any]) -> dict[str, Any]:
    metrics = document["metrics"]
    found = {name: metrics[name]["median"] if metrics[name] else None for name in ("tokens_per_s", "ttft_s")}
    return {"status": document["status"], **found}
