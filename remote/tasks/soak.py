"""The verb for hours of arms and phases that end in a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lean.errors import UsageError
from remote.console import Console
from remote.tasks.verb import exit_with, verb

if TYPE_CHECKING:
    from remote.appliance.soak import Soaked


@verb(
    plan="a plan of profiles/soak",
    pack="a pack on the host; the contract's newest when left out",
    resume="go on with the newest soak of this plan; what is done is not done again",
    force="with --resume: do anew what is done, or was configured otherwise; old rows are kept aside",
    show="how far the newest soak of this plan is, and what would be said of it now; starts nothing",
    results="the results folder of a checkout",
)
def soak(
    console: Console,
    host: str | None = None,
    plan: str = "quick",
    pack: str | None = None,
    resume: bool = False,
    force: bool = False,
    show: bool = False,
    results: str = "results",
    dry_run: bool = False,
) -> None:
    """Run a plan's arms through its phases on the host, for hours, and end with a verdict on each."""
    from remote.appliance import soak
    from remote.host.site import open_site

    if force and not resume:
        raise UsageError("--force does again what a soak has done; give --resume with it")
    request = soak.SoakRequest(plan=plan, pack=pack, resume=resume, force=force)
    with open_site(console, host, dry_run=dry_run) as site:
        if show:
            document = soak.standing(site, plan)
            site.result(document, lambda: _show_standing(console, document))
            return
        found = soak.soak(site, request, results=Path(results))
        site.result(found.document | {"path": str(found.path)}, _shown(console, found))
    if not dry_run and found.error is not None:
        raise exit_with(found.error)


def _shown(console: Console, found: Soaked) -> Callable[[], None]:
    def show() -> None:
        _verdicts(console, found.document)
        console.line(f"{found.path}/report.md")

    return show


def _verdicts(console: Console, document: Mapping[str, Any]) -> None:
    rows = [(each["arm"], each["verdict"], each["rule"], each["why"]) for each in document["verdicts"]]
    console.table(("arm", "verdict", "rule", "why"), rows)


def _show_standing(console: Console, document: Mapping[str, Any]) -> None:
    phases = list(next(iter(document["phases"].values())))
    rows = [
        (arm, *(f"{done[phase]['replays']} of {done[phase]['of']}" for phase in phases))
        for arm, done in document["phases"].items()
    ]
    state = "over" if document["finished"] else "not finished"
    console.table(("arm", *phases), rows, title=f"{document['soak']}: {state}, replays")
    _verdicts(console, document)
