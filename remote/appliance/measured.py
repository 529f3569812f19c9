"""One `lean.bench run` on a host: what it measures, and the run it leaves, brought home."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.errors import LeanError, from_document
from remote.appliance.alone import BENCH_JOB
from remote.appliance.kept import bring_home, record_arguments
from remote.host.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A service on the host: its address, its ready document, and its token where it wants one.

    `pack`: what ours serves; `tokenizer`: the folder of a baseline's checkpoint. One of them is given.
    """

    url: str
    ready_file: str
    pack: str | None = None
    tokenizer: str | None = None
    token_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run that came home. With `error` it ran but does not count; its record is kept all the same."""

    path: Path
    document: dict[str, Any]
    error: LeanError | None


def measure(site: Site, target: Target, profile: str, *options: str, results: Path) -> Measured:
    """`measure_there`, and the run brought home below `results`."""
    return brought(site, measure_there(site, target, profile, *options), profile, results)


def measure_there(site: Site, target: Target, profile: str, *options: str) -> dict[str, Any]:
    """Measure `target` once as a job on the host; the run's document, of one that fails too.

    `options`: further words of `lean.bench run`. Errors: its own, where it left no record.
    """
    arguments = ["--url", target.url, "--profile", profile, "--contract", site.host.contract]
    arguments += ["--pack", target.pack] if target.pack is not None else []
    arguments += ["--tokenizer", target.tokenizer] if target.tokenizer is not None else []
    arguments += [*record_arguments(site), "--service", target.ready_file]
    arguments += ["--token-file", target.token_file] if target.token_file is not None else []
    return site.outcome(BENCH_JOB, "lean.bench", "run", *arguments, *options)


def brought(site: Site, document: dict[str, Any], profile: str, results: Path) -> Measured:
    """The run that `document` names, with its directory pulled below `results`."""
    error = from_document(document) if "error" in document else None
    return Measured(path=bring_home(site, document, profile, results), document=document, error=error)
