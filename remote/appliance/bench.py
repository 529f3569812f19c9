"""One profile in process and against the service: measure on the host, bring the run directory home."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lean.contracts import BenchProfile, load_contract, load_profile
from lean.errors import (
    Interrupted,
    LeanError,
    NotReadyError,
    PreflightError,
    UnreachableError,
)
from remote.appliance.alone import BENCH_JOB, IN_PROCESS_JOB, SERVE_JOB, check_alone, stop_command
from remote.appliance.measured import Measured, brought, measure_there
from remote.appliance.models import newest_pack
from remote.appliance.service import ServeRequest, own_service, running, target_of
from remote.host.site import Site

_EXCERPT = 300  # characters of an error that go into a record


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Streams of a round, or requests a second and how their gaps are; None leaves the profile's own."""

    concurrency: int | None = None
    rate_per_s: float | None = None
    arrivals: str | None = None

    @property
    def flags(self) -> tuple[tuple[str, object], ...]:
        """As `lean.bench run` takes them."""
        return (
            ("--concurrency", self.concurrency),
            ("--rate", None if self.rate_per_s is None else f"{self.rate_per_s:g}"),
            ("--arrivals", self.arrivals),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """What to measure and how; what is left out is the profile's, and of `pack` the contract's newest.

    `runner`: the backend; the contract's own (`runner_of`) when left out and nothing runs. `allow_uncleared`
    and `split_k`: as of `ServeRequest`.
    """

    profile: str
    pack: str | None = None
    requests: int | None = None
    warmup: int | None = None
    runner: str | None = None
    allow_uncleared: bool = False
    split_k: int | None = None
    load: Load = Load()

    @property
    def changed_profile(self) -> BenchProfile:
        """The profile as it is measured. Errors: `ContractError` for what none may have."""
        found = load_profile(self.profile).with_counts(requests=self.requests, warmup_requests=self.warmup)
        return found.with_load(
            concurrency=self.load.concurrency, rate_per_s=self.load.rate_per_s, process=self.load.arrivals
        )

    @property
    def options(self) -> list[str]:
        """The words of `lean.bench run` that change the profile so."""
        given = (("--requests", self.requests), ("--warmup", self.warmup), *self.load.flags)
        return [word for flag, value in given if value is not None for word in (flag, str(value))]


def bench(
    site: Site, request: BenchRequest, *, results: Path, service: dict[str, Any] | None = None
) -> Measured:
    """Measure one profile with the host's contract, in the pack's encoding, and pull the run below `results`.

    A service that runs with this pack and the profile's slots is used; else one is started and stopped again,
    and before it starts the cuda runner measures the same in process, while the device's memory is free.
    `service`: the ready document of the one to measure, which the caller started for this.
    Errors: `ContractError` for counts that no profile may have, before anything is asked of the host;
    `PreflightError` when another service or measurement is in the way, and those of serving and measuring.
    """
    profile = request.changed_profile
    pack = str(PurePosixPath(request.pack or newest_pack(site)))
    serve = ServeRequest(
        pack=pack,
        slots=profile.batch,
        runner=request.runner or runner_of(site),
        allow_uncleared=request.allow_uncleared,
        split_k=request.split_k,
    )
    ready = running(site) if service is None else service
    if ready is not None and service is None:
        _check_running(site, ready, serve, request.runner)
    _check_alone(site, ready)
    in_process = (
        _in_process(site, profile, serve, ready)
        if service is None
        else ("--no-in-process=several runs share the service, and one was not stopped for it",)
    )
    with _service(site, serve, ready) as url:
        target = target_of(site, url, pack)
        document = measure_there(site, target, request.profile, *in_process, *request.options)
    return brought(site, document, request.profile, results)


def runner_of(site: Site) -> str:
    """The backend of the host's contract: our own kernels on a chip, the reference on a CPU."""
    return "torch" if load_contract(site.host.contract).target == "cpu" else "cuda"


def _in_process(
    site: Site, profile: BenchProfile, request: ServeRequest, ready: dict[str, Any] | None
) -> tuple[str, ...]:
    """Measure in process; the words that hand `lean.bench run` the document, or why there is none."""
    runner = ready["runner"]["name"] if ready is not None else request.runner
    if runner != "cuda":
        return (f"--no-in-process=the {runner} runner is measured over HTTP only",)
    if ready is not None:
        return ("--no-in-process=the service was already running and is not ours to stop",)
    if not profile.in_rounds_of_batch:
        return (f"--no-in-process={profile.load} is measured over HTTP only",)
    file = f"{site.paths.tmp}/in_process.json"
    arguments = ["--pack", str(request.pack), "--profile", profile.id, "--runner", runner]
    arguments += ["--slots", str(request.slots), "--out", file]
    arguments += ["--split-k", str(request.split_k)] if request.split_k is not None else []
    site.console.line("measuring in process, before the service starts")
    try:
        _measure_job(site, arguments)
    except (UnreachableError, PreflightError, Interrupted):  # nothing may be measured beside what still runs
        raise
    except LeanError as error:
        return (f"--no-in-process=it failed: {' '.join(str(error).split())[:_EXCERPT]}",)
    return ("--in-process", file)


def _measure_job(site: Site, arguments: Sequence[str]) -> None:
    """The measurement as a job, stopped on Ctrl-C: nobody waits for it then."""
    try:
        try:
            site.job(IN_PROCESS_JOB, "lean.leanserve", "measure", *arguments)
        except Interrupted:
            with suppress(NotReadyError):
                site.stop(IN_PROCESS_JOB)
            raise Interrupted("interrupted; the measurement was stopped") from None
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted again; the job {IN_PROCESS_JOB!r} may still run, see: "
            f"invoke remote.jobs --host {site.name}, and stop it with: {stop_command(site, IN_PROCESS_JOB)}"
        ) from None


def _check_alone(site: Site, ready: dict[str, Any] | None) -> None:
    """Raise `PreflightError` while a job works that nothing may be measured beside."""
    check_alone(site, BENCH_JOB, beside=(SERVE_JOB,))
    if ready is None and site.runs(SERVE_JOB):
        raise PreflightError(
            f"{site.name}: job {SERVE_JOB!r} runs and is not ready, it loads or ends, "
            f"and nothing is measured beside it; wait, or stop it with: {stop_command(site, SERVE_JOB)}"
        )


def _check_running(site: Site, ready: dict[str, Any], request: ServeRequest, runner: str | None) -> None:
    """Raise `PreflightError` unless the service that runs is the one to measure."""
    again = f"run: invoke remote.stop --host {site.name}"
    here = PurePosixPath(site.release).name
    if ready["release"] != here:
        raise PreflightError(
            f"{site.name} serves with release {ready['release']}, this checkout is {here}, and a record "
            f"names only one; {again}"
        )
    served = f"{ready['contract']}-{ready['lock'][:8]}"
    if not str(request.pack).endswith(served) or ready["runner"]["slots"] != request.slots:
        raise PreflightError(
            f"{site.name} serves {served} with {ready['runner']['slots']} slot(s), but this needs "
            f"{request.pack} with {request.slots}; {again}"
        )
    split_k = ready["runner"].get("split_k")
    if split_k != request.split_k:
        raise PreflightError(
            f"{site.name} serves with split-K {split_k or 'off'}, but this needs "
            f"{request.split_k or 'off'}; {again}"
        )
    if runner not in (None, ready["runner"]["name"]):
        raise PreflightError(f"{site.name} serves with {ready['runner']['name']}, not {runner}; {again}")


@contextmanager
def _service(site: Site, request: ServeRequest, ready: dict[str, Any] | None) -> Iterator[str]:
    """The address of the service that runs, or of one of our own for the time of the block."""
    if ready is not None:
        yield str(ready["url"])
        return
    site.console.line(f"starting the service: {request.runner}, {request.slots} slot(s)")
    with own_service(site, request, job=BENCH_JOB) as own:
        yield str(own["url"])
