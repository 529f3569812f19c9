"""The verb for several profiles, runs and settings in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lean.errors import UsageError
from remote.console import Console
from remote.tasks.verb import exit_with, verb, whole_number

if TYPE_CHECKING:
    from remote.appliance.sweep_journal import Journal
    from remote.appliance.sweep_plan import SweepPlan

T = TypeVar("T")
_OFF = ("off", "default")  # in a list of settings: the one that is there when nothing is said


@verb(
    repeated=("profile", "runner", "split_k", "concurrency", "rate"),
    profile="profiles of profiles/bench, with commas or repeated; decode_64_256 when left out",
    runs="measurements of each setting; 1 when left out",
    runner="cuda, torch or default, several with commas or repeated",
    split_k="parts of the output projection: off, 1, 2, 4 or 8, several with commas or repeated",
    concurrency="streams of a round, several with commas or repeated; off: the profile's own",
    rate="requests a second of an open loop, several with commas or repeated: loads beside --concurrency",
    arrivals="how the rates' gaps are: poisson (when left out) or fixed",
    pack="a pack on the host; the contract's newest when left out",
    requests="measured requests per stream instead of the profile's; makes the runs exploratory",
    warmup="warm-up requests per stream instead of the profile's; makes the runs exploratory",
    allow_uncleared="measure an encoding that the host's precision gate has not cleared",
    fresh="a service of its own for every cell, and a chip in process too; else cells share services",
    name="how the sweep is called; the same name and plan again goes on with what is missing",
    resume="go on with the newest sweep of this name or folder; its plan is the one it began with",
    results="the results folder of a checkout",
)
def sweep(
    console: Console,
    host: str | None = None,
    profile: list[str] | None = None,
    runs: int | None = None,
    runner: list[str] | None = None,
    split_k: list[str] | None = None,
    concurrency: list[str] | None = None,
    rate: list[str] | None = None,
    arrivals: str | None = None,
    pack: str | None = None,
    requests: int | None = None,
    warmup: int | None = None,
    allow_uncleared: bool = False,
    fresh: bool = False,
    name: str = "sweep",
    resume: str | None = None,
    results: str = "results",
    dry_run: bool = False,
) -> None:
    """Measure several profiles, runs and settings; every run is kept, what is missing can follow."""
    from lean.contracts.host import HOST_NAME
    from remote.appliance.sweep import run_sweep
    from remote.appliance.sweep_journal import find_journal, open_journal
    from remote.host.hosts import load_host
    from remote.host.site import open_site

    planned = (profile, runs, runner, split_k, concurrency, rate, arrivals, pack, requests, warmup)
    if resume is not None and (any(planned) or allow_uncleared or fresh):
        raise UsageError("--resume goes on with the plan it finds; leave out the flags that make one")
    if HOST_NAME.fullmatch(name) is None:
        raise UsageError(f"--name {name!r}: expected letters, digits, '.', '_' and '-'")
    there = load_host(host)[0]
    if resume is not None:
        journal = find_journal(Path(results), there, resume)
    else:
        plan = _plan(
            profiles=_each("--profile", profile, str) or ("decode_64_256",),
            runs=whole_number("--runs", runs),
            runners=_each("--runner", runner, str) or (None,),
            split_ks=_each("--split-k", split_k, int) or (None,),
            loads=(_each("--concurrency", concurrency, int), _each("--rate", rate, float), arrivals),
            pack=pack,
            requests=whole_number("--requests", requests),
            warmup=whole_number("--warmup", warmup),
            allow_uncleared=allow_uncleared,
            fresh=fresh,
        )
        journal = open_journal(Path(results), there, name, plan, dry_run=dry_run)
    with journal.lock(dry_run=dry_run):
        if dry_run or journal.sweep.missing:
            with open_site(console, host, dry_run=dry_run) as site:
                run_sweep(site, journal, results=Path(results))
    if not dry_run:
        show_sweep(console, journal)


def show_sweep(console: Console, journal: Journal) -> None:
    """Render a sweep as it stands. Ends with the code of its first failure when not every cell counts."""
    from lean.contracts import to_data
    from remote.appliance.sweep import sweep_failure
    from remote.appliance.sweep_summary import COLUMNS, problems, summary_rows

    rows = summary_rows(journal.sweep)
    failure = sweep_failure(journal)
    document = {
        "folder": str(journal.folder),
        "columns": list(COLUMNS),
        "rows": [list(row) for row in rows],
        "sweep": to_data(journal.sweep),
    }
    if failure is not None:
        error = {"kind": type(failure).__name__, "message": str(failure), "exit_code": failure.exit_code}
        document["error"] = error

    def show() -> None:
        console.table(COLUMNS, rows)
        for line in problems(journal.sweep):
            console.line(f"does not count: {line}")
        console.line(f"{journal.folder}: sweep.json, summary.md")

    console.result(document, show)
    if failure is not None:
        raise exit_with(failure)


def _plan(
    *,
    loads: tuple[Sequence[int | None], Sequence[float | None], str | None],
    **settings: Any,
) -> SweepPlan:
    """The plan of a command line. Errors: `UsageError` for one that no sweep may have."""
    from remote.appliance.bench import Load
    from remote.appliance.sweep_plan import SweepPlan

    concurrencies, rates, arrivals = loads
    found = [Load(concurrency=streams) for streams in concurrencies]
    found += [Load(rate_per_s=rate, arrivals=arrivals if rate is not None else None) for rate in rates]
    if arrivals is not None and not rates:
        raise UsageError("--arrivals says how the gaps of --rate are; give a rate")
    runs = settings.pop("runs")
    try:
        return SweepPlan(
            **settings, runs=1 if runs is None else runs, loads=tuple(dict.fromkeys(found)) or (Load(),)
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _each(flag: str, given: Sequence[str] | None, kind: Callable[[str], T]) -> tuple[T | None, ...]:
    """The values of a flag, given with commas or repeated; None for `off` and `default`."""
    words = [word.strip() for text in given or () for word in text.split(",")]
    try:
        return tuple(None if word in _OFF else kind(word) for word in words)
    except ValueError as error:
        raise UsageError(f"{flag} {','.join(words)}: {error}") from None
