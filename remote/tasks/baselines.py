"""Other systems, measured beside ours through the same client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lean.errors import UsageError
from remote.console import Console
from remote.tasks.verb import exit_with, verb, whole_number

if TYPE_CHECKING:
    from remote.appliance.baseline import BaselineRequest
    from remote.appliance.compare import ProtocolResult


@verb()
def baseline_up(
    console: Console,
    host: str | None = None,
    system: str = "transformers",
    profile: str = "decode_64_256",
    model: str | None = None,
    bring: str | None = None,
    threads: str | None = None,
    dry_run: bool = False,
) -> None:
    """Install another system on the host and serve with it; ready means that a real token came out."""
    from remote.appliance import baseline
    from remote.host.site import open_site

    request = _request(system, profile, model, bring, threads)
    with open_site(console, host, dry_run=dry_run) as site:
        site.result(baseline.up(site, request))


@verb()
def baseline_down(console: Console, host: str | None = None, dry_run: bool = False) -> None:
    """Stop the other system, and say whether its memory came back."""
    from remote.appliance import baseline
    from remote.host.site import open_site

    with open_site(console, host, dry_run=dry_run) as site:
        site.result(baseline.down(site))


@verb(mode="plain is one run, best is the best of --runs", runs="how many; 3 for best")
def baseline(
    console: Console,
    host: str | None = None,
    system: str = "transformers",
    profile: str = "decode_64_256",
    mode: str = "plain",
    runs: str | None = None,
    model: str | None = None,
    bring: str | None = None,
    threads: str | None = None,
    results: str = "results",
    dry_run: bool = False,
) -> None:
    """Install another system, serve with it, measure it through our client, and stop it again."""
    from remote.appliance import baseline_runs
    from remote.host.site import open_site

    request = _request(system, profile, model, bring, threads)
    count = baseline_runs.count_of(mode, whole_number("--runs", runs))
    with open_site(console, host, dry_run=dry_run) as site:
        found = baseline_runs.run_baseline(site, request, mode=mode, runs=count, results=Path(results))
    if not dry_run:
        path = baseline_runs.keep_baseline(found, Path(results))
        console.result(found.document | {"path": str(path)})
        if found.error is not None:
            raise exit_with(found.error)


@verb(
    runs="of each side",
    pack="ours, a pack on the host; the contract's newest when left out",
    runner="cuda or torch; by the contract's target when left out",
    results="the results folder of a checkout",
)
def compare(
    console: Console,
    host: str | None = None,
    system: str = "transformers",
    profile: str = "decode_64_256",
    runs: int = 3,
    pack: str | None = None,
    runner: str | None = None,
    model: str | None = None,
    bring: str | None = None,
    threads: str | None = None,
    results: str = "results",
    dry_run: bool = False,
) -> None:
    """Run the whole protocol on one host: the baseline, ours, the fairness gate, the ratio, the report."""
    from remote.appliance import compare
    from remote.host.site import open_site

    request = compare.CompareRequest(
        baseline=_request(system, profile, model, bring, threads), runs=runs, pack=pack, runner=runner
    )
    with open_site(console, host, dry_run=dry_run) as site:
        found = compare.compare(site, request, results=Path(results))
        site.result(found.document | {"path": str(found.path)}, _shown(console, found))
    if not dry_run and found.error is not None:
        raise exit_with(found.error)


def _request(
    system: str, profile: str, model: str | None, bring: str | None, threads: str | None
) -> BaselineRequest:
    from lean.contracts.systems import SYSTEMS
    from remote.appliance.baseline import BaselineRequest

    if system not in SYSTEMS:
        raise UsageError(f"--system {system}: expected one of {', '.join(SYSTEMS)}")
    return BaselineRequest(
        system=system,
        profile=profile,
        model=model,
        bring=bring,
        threads=whole_number("--threads", threads),
    )


def _shown(console: Console, found: ProtocolResult) -> Callable[[], None]:
    from lean.markdown import number_or_dash

    def show() -> None:
        document = found.document
        sides = [document[name] for name in ("ours", "peer")]
        figures = ("plain", "median", "best")
        rows = [(s["system"], *(number_or_dash(s[n]) for n in figures), len(s["runs"])) for s in sides]
        console.table(("system", *figures, "runs"), rows, title="generated tokens/s")
        checks = [(c["rule"], "passed" if c["passed"] else "BROKEN", c["detail"]) for c in document["checks"]]
        console.table(("fairness", "", ""), checks)
        console.line(str(document["headline"]).replace("**", ""))
        console.line(f"{found.path}/report.md")

    return show
