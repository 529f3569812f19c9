"""Where a decode step's time goes on a host: time it there, bring the record home."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.appliance.alone import REGIONS_JOB
from remote.appliance.bench import runner_of
from remote.appliance.kept import measure_and_keep
from remote.appliance.models import newest_pack
from remote.host.site import Site
from remote.ssh.command import plain_path


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionsRequest:
    """What to time: a pack on the host, the contract's newest by default, under a bench profile.

    `runner`: the contract's own when left out. `split_k`: as of `ServeRequest`.
    """

    profile: str
    pack: str | None = None
    runner: str | None = None
    split_k: int | None = None


def time_regions(site: Site, request: RegionsRequest, *, results: Path) -> dict[str, Any]:
    """Time the regions of decode steps and pull the record below `results`.

    The document's `record` is its folder here. Errors: `PreflightError` while the host serves or measures,
    and those of `lean.regions`.
    """
    pack = plain_path("pack", request.pack or newest_pack(site))
    arguments = ["--pack", pack, "--profile", request.profile, "--runner", request.runner or runner_of(site)]
    arguments += ["--split-k", str(request.split_k)] if request.split_k is not None else []
    return measure_and_keep(site, REGIONS_JOB, "lean.regions", *arguments, results=results)
