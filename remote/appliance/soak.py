"""A soak on a host: start it as a job, follow it for hours or come back to it, bring the record home."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.contracts import load_plan
from lean.contracts.soak import OURS
from lean.errors import LeanError, from_document
from remote.appliance.alone import SOAK_JOB, check_alone
from remote.appliance.baseline import BaselineRequest, environments, install
from remote.appliance.bench import runner_of
from remote.appliance.kept import bring_home, record_arguments
from remote.appliance.models import newest_pack, newest_snapshot
from remote.host.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakRequest:
    """Which plan, on which pack on the host, the contract's newest by default.

    `resume`: go on with the newest soak of the plan; `force`: do anew what is done or has changed.
    """

    plan: str
    pack: str | None = None
    resume: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Soaked:
    """What came home. With `error` it says less than the plan asked for; its record is kept all the same."""

    path: Path
    document: dict[str, Any]
    error: LeanError | None


def soak(site: Site, request: SoakRequest, *, results: Path) -> Soaked:
    """Run a plan, or go on with one, and pull its record below `results`.

    Ctrl-C detaches, the job goes on. Errors: `ContractError` for a malformed plan, before anything is asked
    of the host; `PreflightError` while anything else works there; those of `lean.soak`.
    """
    plan = load_plan(request.plan)
    others = sorted({arm.engine for arm in plan.arms} - {OURS})
    check_alone(site, "")
    arguments = ["--root", soaks(site), "--plan", request.plan]
    arguments += ["--contract", site.host.contract, "--runner", runner_of(site)]
    arguments += ["--pack", request.pack or newest_pack(site), "--venvs", environments(site.paths)]
    if others:
        model = newest_snapshot(site)
        for system in others:
            install(site, BaselineRequest(system=system, profile="decode_64_256", model=model))
        arguments += ["--model", model]
    arguments += ["--gate", f"{site.paths.artifacts}/gate"]
    arguments += ["--gpu", "none"] if site.host.gpu == "none" else []
    arguments += ["--resume"] if request.resume else []
    arguments += ["--force"] if request.force else []
    document = site.outcome(SOAK_JOB, "lean.soak", "run", *arguments, *record_arguments(site))
    error = from_document(document) if "error" in document else None
    return Soaked(path=bring_home(site, document, "soak", results), document=document, error=error)


def standing(site: Site, plan: str) -> dict[str, Any]:
    """Where the newest soak of a plan is. Errors: `NotReadyError` when there is none."""
    return site.call("lean.soak", "show", "--root", soaks(site), "--plan", plan)


def soaks(site: Site) -> str:
    """Where the host's soaks lie; the user's own data files are in `data` below it."""
    return f"{site.paths.root}/soak"
