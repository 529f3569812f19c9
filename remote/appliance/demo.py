"""The whole loop on one host, phase by phase: what `make demo` runs."""

from __future__ import annotations

from lean.contracts import load_profile
from lean.errors import PreflightError
from remote.appliance.alone import BENCH_JOB
from remote.appliance.bench import BenchRequest, bench
from remote.appliance.measured import Measured
from remote.appliance.models import fetch, pack
from remote.appliance.service import ServeRequest, own_service, running
from remote.appliance.toolchain import verify
from remote.console import Console
from remote.host.site import open_site
from remote.paths import REPOSITORY


def whole_loop(console: Console, host: str | None, profile: str, *, dry_run: bool = False) -> Measured:
    """Reach, sync, bootstrap, verify, fetch, pack, serve, measure, pull. Errors: those of the phases."""
    batch = load_profile(profile).batch
    console.phase("reach the host, sync this checkout, make its environment (minutes on first use)")
    with open_site(console, host, dry_run=dry_run) as site:
        console.line(f"release {site.release}")
        if running(site) is not None:
            raise PreflightError(f"{site.name} serves already; run: invoke remote.stop --host {site.name}")
        console.phase("prove the toolchain: Python -> TileIR bytecode -> TileIR text -> cubin -> SASS")
        proof = verify(site)
        console.line(f"{proof['status']}, every stage as a file in {proof['artifacts']}")
        console.phase("fetch the checkpoint and build the leanpack")
        snapshot = fetch(site)
        built = pack(site, model=snapshot["path"])
        console.line(f"{built['path']}, LOCK {built['lock']}")
        console.phase("start the resident service; ready means a real token")
        with own_service(site, ServeRequest(pack=built["path"], slots=batch), job=BENCH_JOB) as ready:
            console.line(
                f"first token {ready['startup_seconds']['first_token']:.1f} s after the process began"
            )
            console.phase(f"measure {profile} and pull the run")
            request = BenchRequest(profile=profile, pack=built["path"])
            return bench(site, request, results=REPOSITORY / "results")
