"""One profile against the service: make it run, measure on the host, bring the run directory home."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lean.contracts import load_profile
from lean.errors import (
    Interrupted,
    LeanError,
    NotReadyError,
    PreflightError,
    UnreachableError,
    from_document,
)
from remote.appliance.models import newest_pack
from remote.appliance.service import ServeRequest, ready_file, running, serve, stop, token_file
from remote.host.site import Site
from remote.ssh.command import plain_name

BENCH_JOB = "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run that came home. With `error` it ran but does not count; its record is kept all the same."""

    path: Path
    document: dict[str, Any]
    error: LeanError | None


def bench(
    site: Site,
    profile: str,
    *,
    results: Path,
    pack: str | None = None,
    requests: int | None = None,
    warmup: int | None = None,
) -> Measured:
    """Measure one profile with the host's contract and pull the run below `results`.

    A service that runs with this pack and the profile's slots is used; else one is started and stopped again.
    Errors: `ContractError` for counts that no profile may have, before anything is asked of the host;
    `PreflightError` when another service is in the way, and those of serving and measuring.
    """
    batch = load_profile(profile).with_counts(requests=requests, warmup_requests=warmup).batch
    chosen = str(PurePosixPath(pack or newest_pack(site)))
    with _service(site, chosen, batch) as url:
        arguments = ["--url", url, "--profile", profile, "--contract", site.host.contract]
        arguments += ["--host-name", site.name, "--pack", chosen, "--results", site.paths.results]
        arguments += ["--token-file", token_file(site.paths), "--service", ready_file(site.paths)]
        arguments += ["--release", f"{site.release}/release.json"]
        for flag, value in (("--requests", requests), ("--warmup", warmup)):
            arguments += [flag, str(value)] if value is not None else []
        document = site.outcome(BENCH_JOB, "lean.bench", "run", *arguments)
    run = plain_name("run", PurePosixPath(str(document["place"])).name)
    target = results / "v1" / site.name / profile / run
    site.pull(document["run"], target)
    return Measured(
        path=target, document=document, error=from_document(document) if "error" in document else None
    )


@contextmanager
def _service(site: Site, pack: str, slots: int) -> Iterator[str]:
    ready = running(site)
    if ready is None:
        site.console.line(f"starting the service with {slots} slot(s)")
        with own_service(site, ServeRequest(pack=pack, slots=slots)) as own:
            yield str(own["url"])
        return
    here = PurePosixPath(site.release).name
    if ready["release"] != here:
        raise PreflightError(
            f"{site.name} serves with release {ready['release']}, this checkout is {here}, and a record "
            f"names only one; run: invoke remote.stop --host {site.name}"
        )
    served = f"{ready['contract']}-{ready['lock'][:8]}"
    if not pack.endswith(served) or ready["runner"]["slots"] != slots:
        raise PreflightError(
            f"{site.name} serves {served} with {ready['runner']['slots']} slot(s), but this needs {pack} "
            f"with {slots}; run: invoke remote.stop --host {site.name}"
        )
    yield str(ready["url"])


@contextmanager
def own_service(site: Site, request: ServeRequest) -> Iterator[dict[str, Any]]:
    """A service for the time of the block, and its ready document.

    On Ctrl-C the measurement is stopped with it, since it cannot go on alone. When the link is lost, both
    go on.
    """
    ready = serve(site, request)
    try:
        try:
            yield ready
        except UnreachableError as error:
            raise type(error)(
                f"{error} The service goes on too; end it with: invoke remote.stop --host {site.name}"
            ) from None
        except Interrupted:
            with suppress(NotReadyError):
                site.stop(BENCH_JOB)
            stop(site)
            raise Interrupted("interrupted; the measurement and its service were stopped") from None
        except BaseException:
            stop(site)
            raise
        else:
            stop(site)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted again; the jobs {BENCH_JOB!r} and 'serve' may still run, "
            f"see: invoke remote.jobs --host {site.name}"
        ) from None
