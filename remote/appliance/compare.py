"""The fixed-contract protocol on one host: baseline up, measured, down; ours up, measured, down; report."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from lean.contracts import load_profile
from lean.errors import LeanError, PreflightError, UsageError, from_document
from remote.appliance.alone import BENCH_JOB, check_alone
from remote.appliance.baseline import BaselineRequest, measure_baseline, own_baseline
from remote.appliance.bench import runner_of
from remote.appliance.measured import Measured, measure
from remote.appliance.models import newest_pack
from remote.appliance.service import ServeRequest, own_service, target_of
from remote.host.site import Site

KIND = "versus"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareRequest:
    """One system under one profile. `runs` of each side; `pack`: ours, the contract's newest by default."""

    baseline: BaselineRequest
    runs: int = 3
    pack: str | None = None
    runner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolResult:
    """What came home. With `error` it does not count; its records are kept all the same."""

    path: Path
    document: dict[str, Any]
    error: LeanError | None


@dataclass(slots=True)
class _Protocol:
    """What was done, step by step, for the report."""

    say: Callable[[str], None]
    steps: list[dict[str, str]] = field(default_factory=list)

    def did(self, what: str, detail: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.steps.append({"at_utc": now, "what": what, "detail": detail})
        self.say(f"{what}: {detail}")


def compare(site: Site, request: CompareRequest, *, results: Path) -> ProtocolResult:
    """The whole protocol. Every run and the report come home below `results`.

    Errors: `PreflightError` while anything works on the host. An unfair or throttled comparison is returned
    with its `error`.
    """
    if request.runs < 1:
        raise UsageError(f"--runs {request.runs}: expected 1 or more")
    profile, system = request.baseline.profile, request.baseline.system
    batch = load_profile(profile).batch
    started = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    protocol = _Protocol(say=site.console.line)
    check_alone(site, BENCH_JOB)
    protocol.did("status", f"{site.name}: nothing else of ours works there")
    with own_baseline(site, request.baseline) as theirs:
        version, seconds = theirs.ready["version"], theirs.ready["first_token_seconds"]
        protocol.did("baseline up", f"{system} {version}, first token after {seconds} s")
        others = [
            _noted(protocol, system, measure_baseline(site, theirs.ready, profile, results=results))
            for _ in range(request.runs)
        ]
    assert theirs.ended is not None
    protocol.did("baseline down", str(theirs.ended["verdict"]))
    if not theirs.ended["memory_returned"]:
        raise PreflightError(
            f"{site.name}: {system} was stopped, its memory did not come back, and nothing is measured "
            "beside it; look at nvidia-smi there"
        )
    pack = str(PurePosixPath(request.pack or newest_pack(site)))
    serve = ServeRequest(pack=pack, slots=batch, runner=request.runner or runner_of(site))
    with own_service(site, serve, job=BENCH_JOB) as own:
        protocol.did("appliance up", f"{serve.runner} runner, pack {str(own['lock'])[:8]}")
        target = target_of(site, str(own["url"]), pack)
        options = ("--prompt", "text", "--no-in-process=a comparison measures over HTTP alone")
        ours = [
            _noted(protocol, "leanstack", measure(site, target, profile, *options, results=results))
            for _ in range(request.runs)
        ]
    protocol.did("appliance down", "its job ended")
    return _reported(site, results, f"{started}-{system}", ours, others, protocol)


def _noted(protocol: _Protocol, name: str, run: Measured) -> Measured:
    found = run.document["metrics"]["tokens_per_s"]
    rate = f"{found['median']:.1f} tokens/s" if found else "no tokens/s"
    protocol.did(f"measured {name}", f"{run.path.name}: {run.document['status']}, {rate}")
    return run


def _reported(
    site: Site, results: Path, name: str, ours: list[Measured], others: list[Measured], protocol: _Protocol
) -> ProtocolResult:
    """Let the host judge and draw, where the runs lie and the libraries are; bring the folder home."""
    there = f"{site.paths.results}/v1/{site.name}/{KIND}/{name}"
    steps = f"{site.paths.tmp}/versus-steps.json"
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "steps.json"
        document = {"schema": "versus-steps/v1", "steps": protocol.steps}
        written.write_text(json.dumps(document), encoding="utf-8")
        site.push(written, steps)
    arguments = ["--name", name, "--out", there, "--steps", steps]
    for flag, runs in (("--ours", ours), ("--baseline", others)):
        for run in runs:
            arguments += [flag, str(run.document["run"])]
    found = site.outcome(KIND, "lean.bench", "versus", *arguments)
    target = results / "v1" / site.name / KIND / name
    site.pull(there, target)
    error = from_document(found) if "error" in found else None
    return ProtocolResult(path=target, document=found, error=error)
