"""Another system on a host: install it apart, serve with it, measure it through our client, stop it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.contracts import load_profile
from lean.errors import NotReadyError
from remote.appliance.alone import BASELINE_JOB, BENCH_JOB, INSTALL_JOB, check_alone
from remote.appliance.baseline_packages import packages_of
from remote.appliance.measured import Measured, Target, measure
from remote.appliance.models import newest_snapshot
from remote.appliance.own import own
from remote.host.site import LiveSite, Site
from remote.paths import HostPaths
from remote.ssh.command import plain_path
from remote.ssh.forward import Forward

READY_S = 4 * 3600.0  # the host program has a deadline of its own, by the bytes it has to load
STOP_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRequest:
    """Which system, under which bench profile. `model`: a checkpoint on the host, by default the newest one.

    `bring`: a folder on the host with every package; one without internet otherwise gets them from here.
    `threads`: of the CPU.
    """

    system: str
    profile: str
    model: str | None = None
    bring: str | None = None
    threads: int | None = None


def install(site: Site, request: BaselineRequest) -> dict[str, Any]:
    """The system's own environment on the host, made unless it is there. Errors: why it cannot be had.

    A host without internet gets what it needs from here, unless `bring` names a folder that has it.
    """
    arguments = ["--system", request.system, "--venvs", environments(site.paths)]
    bring = request.bring
    if bring is None and not site.host.internet:
        bring = packages_of(site, request.system, *arguments)
    arguments += ["--bring", plain_path("bring", bring)] if bring else []
    return site.job(INSTALL_JOB, "lean.baseline", "install", *arguments)


def up(site: Site, request: BaselineRequest) -> dict[str, Any]:
    """Serve the contract's model with it; its ready document once a real token came out.

    Errors: `PreflightError` while anything works on the host; those of `lean.baseline`.
    """
    check_alone(site, BASELINE_JOB)
    install(site, request)
    profile = load_profile(request.profile)
    arguments = ["--system", request.system, "--venvs", environments(site.paths)]
    arguments += ["--model", request.model or newest_snapshot(site), "--contract", site.host.contract]
    arguments += ["--slots", str(profile.batch), "--ready-file", ready_file(site.paths)]
    arguments += ["--length", str(profile.prompt_tokens + profile.decode_tokens)]
    arguments += ["--gpu", "none"] if site.host.gpu == "none" else []
    arguments += ["--threads", str(request.threads)] if request.threads is not None else []
    site.console.line(f"starting {request.system}, {profile.batch} stream(s)")
    return site.service(
        BASELINE_JOB,
        "lean.baseline",
        "serve",
        *arguments,
        ready_file=ready_file(site.paths),
        timeout_s=READY_S,
    )


def down(site: Site) -> dict[str, Any]:
    """Stop it; how it ended, and whether its memory came back. Errors: `NotReadyError` when none ran."""
    site.stop(BASELINE_JOB, grace_s=STOP_S)
    return site.call("lean.baseline", "ended", "--ready-file", ready_file(site.paths))


def running(site: Site) -> dict[str, Any] | None:
    """The ready document of the one that runs, None when none does or it is not ready."""
    return site.ready(BASELINE_JOB, ready_file(site.paths))


@contextmanager
def forwarded(site: LiveSite, system: str, port: int) -> Iterator[tuple[Forward, dict[str, Any]]]:
    """A port of this machine that leads to the one that runs; what it calls its model, and its dialect.

    Errors: `NotReadyError` when it does not run there, `PreflightError` when the port is taken.
    """
    ready = running(site)
    if ready is None or ready["system"] != system:
        raise NotReadyError(
            f"{site.name} does not serve with {system}; run: "
            f"invoke remote.baseline-up --host {site.name} --system {system}"
        )
    with Forward(site.connection, int(ready["port"]), port=port) as forward:
        yield forward, {"token_file": None, "model": ready["model"], "dialect": ready["dialect"]}


def measure_baseline(site: Site, ready: dict[str, Any], profile: str, *, results: Path) -> Measured:
    """Measure the one that runs, once, and pull the run below `results`."""
    model = str(ready["model_directory"])
    target = Target(url=str(ready["url"]), ready_file=ready_file(site.paths), tokenizer=model)
    return measure(site, target, profile, "--prompt", "text", results=results)


@dataclass(slots=True)
class OwnBaseline:
    """One of our own: its ready document, and how it ended, once it did."""

    ready: dict[str, Any]
    ended: dict[str, Any] | None = None


@contextmanager
def own_baseline(site: Site, request: BaselineRequest) -> Iterator[OwnBaseline]:
    """One for the time of the block, and how it ended behind it."""
    found = OwnBaseline(up(site, request))

    def stop() -> None:
        found.ended = down(site)

    with own(site, request.system, job=BASELINE_JOB, measurement=BENCH_JOB, stop=stop):
        yield found


def ready_file(paths: HostPaths) -> str:
    """Where it says that it is ready, and how to reach it."""
    return f"{paths.tmp}/baseline.ready.json"


def environments(paths: HostPaths) -> str:
    """Where the other systems' environments lie, one each."""
    return f"{paths.root}/venvs"
