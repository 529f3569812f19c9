"""A measurement on a host that leaves a record: run it there alone, bring the record home."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from remote.appliance.alone import check_alone
from remote.host.site import Site
from remote.ssh.command import plain_name


def record_arguments(site: Site) -> tuple[str, ...]:
    """What a host program that writes a record is told: for whom, where to, and by which code."""
    return (
        *("--host-name", site.name, "--results", site.paths.results),
        *("--release", f"{site.release}/release.json"),
    )


def measure_and_keep(site: Site, job: str, module: str, *arguments: str, results: Path) -> dict[str, Any]:
    """Run `module` as the job that is also the kind of its record, and pull that below `results`.

    The document's `record` is its folder here. Errors: `PreflightError` while the host serves or measures,
    and those of `module`.
    """
    check_alone(site, job)
    document = site.job(job, module, *arguments, *record_arguments(site))
    return document | {"record": str(bring_home(site, document, job, results))}


def bring_home(site: Site, document: Mapping[str, Any], kind: str, results: Path) -> Path:
    """Pull the folder that a host program's document names as its `run`; where it lies below `results`."""
    run = plain_name("run", PurePosixPath(str(document["place"])).name)
    target = results / "v1" / site.name / kind / run
    site.pull(str(document["run"]), target)
    return target
