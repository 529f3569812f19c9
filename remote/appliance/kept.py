"""A measurement on a host that leaves a record: run it there alone, bring the record home."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from remote.appliance.alone import check_alone
from remote.host.site import Site
from remote.ssh.command import command_line, plain_name, plain_path


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
    target = _home(site.name, document, kind, results)
    site.pull(str(document["run"]), target)
    return target


def pull_command(host: str, document: Mapping[str, Any] | None, results: Path) -> str | None:
    """What brings home the record that a finished job's document names, as a person types it.

    None when the document names none, or it is below `results` already. For a measurement that nobody waited
    for any more: its link was lost, or it was interrupted.
    """
    if document is None or "run" not in document or "place" not in document:
        return None
    target = _home(host, document, PurePosixPath(str(document["place"])).parent.name, results)
    if target.exists():
        return None
    source = plain_path("run", str(document["run"]))
    return command_line(
        ["invoke", "remote.pull", "--host", host, "--source", source, "--target", str(target)]
    )


def _home(host: str, document: Mapping[str, Any], kind: str, results: Path) -> Path:
    """Where a record that a host program left lies below `results`."""
    run = plain_name("run", PurePosixPath(str(document["place"])).name)
    return results / "v1" / host / plain_name("kind", kind) / run
