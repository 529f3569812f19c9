"""The resident service on a host: start, look, read, stop. It listens on the host's own 127.0.0.1 only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, get_args

from lean.contracts import Encoding
from lean.errors import NotReadyError, PreflightError
from remote.appliance.alone import SERVE_JOB, SOAK_JOB, stop_command
from remote.appliance.gate_records import newest_record
from remote.appliance.measured import Target
from remote.appliance.models import newest_pack
from remote.appliance.own import own
from remote.host.site import LiveSite, Site
from remote.paths import REPOSITORY, STATE, HostPaths
from remote.ssh.forward import Forward

DRAIN_S = 30.0  # for running streams after `stop`
READY_S = 1200.0  # a 60 GB pack from a slow disk; the tiny one takes seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """What to serve and how.

    `pack` is a path on the host, the contract's newest by default; port 0 takes a free one.
    `allow_uncleared`: also an encoding that the host's precision gate has not cleared. `split_k`: parts that
    each head's share of the output projection is cut into, whole when left out. `regions`: write the times of
    each step's regions to a new file, which the ready document names.
    """

    pack: str | None = None
    runner: str = "torch"
    slots: int = 1
    bucket: int | None = None
    dtype: str | None = None
    port: int = 0
    threads: int | None = None
    allow_uncleared: bool = False
    split_k: int | None = None
    regions: bool = False


def token_file(paths: HostPaths) -> str:
    """Where the service's bearer token lies on the host, mode 0600."""
    return f"{paths.tmp}/serve.token"


def ready_file(paths: HostPaths) -> str:
    """Where the service says that it is ready, and how to reach it."""
    return f"{paths.tmp}/serve.ready.json"


def serve(site: Site, request: ServeRequest) -> dict[str, Any]:
    """Start the service as the job `serve`; its ready document, once a real token came out."""
    if site.runs(SOAK_JOB):
        raise PreflightError(
            f"{site.name}: a soak runs, and what is served beside it would be in its times; wait for it, or "
            f"stop it with: {stop_command(site, SOAK_JOB)}"
        )
    site.call("lean.leanserve", "token", "--token-file", token_file(site.paths))
    arguments = ["--pack", request.pack or newest_pack(site), "--runner", request.runner]
    arguments += ["--slots", str(request.slots), "--port", str(request.port)]
    arguments += ["--drain-seconds", str(DRAIN_S)]
    arguments += ["--token-file", token_file(site.paths), "--ready-file", ready_file(site.paths)]
    for flag, value in (
        ("--bucket", request.bucket),
        ("--dtype", request.dtype),
        ("--threads", request.threads),
        ("--split-k", request.split_k),
        ("--regions", _regions_file(site.paths) if request.regions else None),
    ):
        arguments += [flag, str(value)] if value is not None else []
    arguments += _gate_records(site, request)
    arguments += ["--allow-uncleared"] if request.allow_uncleared else []
    return site.service(
        SERVE_JOB, "lean.leanserve", "serve", *arguments, ready_file=ready_file(site.paths), timeout_s=READY_S
    )


def _gate_records(site: Site, request: ServeRequest) -> list[str]:
    """Where the service finds what the host's precision gate said: its own runs, and our newest record of it.

    The record is sent only for a pack whose name says that its weights are encoded.
    """
    if request.runner != "cuda":
        return []
    records = ["--gate", f"{site.paths.artifacts}/gate"]
    encodings = [name for name in get_args(Encoding) if name != "bf16"]
    encoded = any(f"-{name}-" in PurePosixPath(request.pack or "").name for name in encodings)
    kept = newest_record(REPOSITORY / "results", site.name) if encoded else None
    if kept is not None:
        there = f"{site.paths.tmp}/gate-record.json"
        site.push(kept, there)
        records += ["--gate", there]
    return records


def _regions_file(paths: HostPaths) -> str:
    return f"{paths.artifacts}/regions/{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.jsonl"


def target_of(site: Site, url: str, pack: str) -> Target:
    """The service that runs, for `measure`; `pack` is what it serves."""
    return Target(url=url, ready_file=ready_file(site.paths), pack=pack, token_file=token_file(site.paths))


def running(site: Site) -> dict[str, Any] | None:
    """The ready document of the service that runs, None when none does or it is not ready."""
    return site.ready(SERVE_JOB, ready_file(site.paths))


def stop(site: Site) -> dict[str, Any]:
    """SIGTERM: the service drains its streams; then SIGKILL if need be. Errors: `NotReadyError`."""
    return site.stop(SERVE_JOB, grace_s=DRAIN_S + 15.0)


@contextmanager
def own_service(site: Site, request: ServeRequest, *, job: str) -> Iterator[dict[str, Any]]:
    """A service for the time of the block, and its ready document; `job` is the measurement that uses it."""
    ready = serve(site, request)
    with own(site, "its service", job=SERVE_JOB, measurement=job, stop=lambda: stop(site)):
        yield ready


def read_log(site: LiveSite, on_line: Callable[[str], None], *, follow: bool) -> int:
    """Hand over the service's log so far, or until it ends; the number of lines. Errors: `NotReadyError`."""
    lines = 0

    def count(line: str) -> None:
        nonlocal lines
        lines += 1
        on_line(line)

    if follow:
        site.jobs.follow(SERVE_JOB, count)
    else:
        text = site.connection.run(["cat", "--", site.jobs.status(SERVE_JOB).log]).stdout
        for line in text.splitlines():
            count(line)
    return lines


@contextmanager
def forwarded(site: LiveSite, port: int) -> Iterator[tuple[Forward, dict[str, Any]]]:
    """A port of this machine that leads to the service, and `token_file`, of mode 0600 here.

    Errors: `NotReadyError` when no service runs, `PreflightError` when the port is taken.
    """
    ready = running(site)
    if ready is None:
        raise NotReadyError(f"{site.name} serves nothing; run: invoke remote.serve --host {site.name}")
    token = site.connection.run(["cat", "--", token_file(site.paths)]).stdout
    here = STATE / "tokens" / site.name
    here.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(here, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(token)
    with Forward(site.connection, int(ready["port"]), port=port) as forward:
        yield forward, {"token_file": str(here)}


def status(site: LiveSite) -> dict[str, Any]:
    """Job and service: state, pid, url on the host, pack, runner, start-up times.

    Errors: `NotReadyError` without a job.
    """
    job = site.jobs.status(SERVE_JOB)
    ready = site.ready_document(ready_file(site.paths), job)
    return {"state": job.state, "ready": ready is not None, "started": job.started, "log": job.log} | (
        ready or {}
    )
