"""The resident service's verbs: serve, status, logs, stop, forward, and the measurement against it."""

from __future__ import annotations

from pathlib import Path

from invoke import Exit

from remote.console import Console
from remote.tasks.results import run_table
from remote.tasks.verb import verb


@verb(
    pack="a pack on the host; the contract's newest when left out",
    runner="the backend; there is no silent fallback",
    slots="streams at once: 1, 2, 4 or 8",
    bucket="always decode this many rows: streams are then byte-identical whatever their neighbours",
    dtype="of activations and cache: float32 or bfloat16",
    port="on the host's 127.0.0.1; 0 takes a free one",
    threads="CPU threads; chosen by the size of the weights when left out",
)
def serve(
    console: Console,
    host: str | None = None,
    pack: str | None = None,
    runner: str = "torch",
    slots: int = 1,
    bucket: int | None = None,
    dtype: str | None = None,
    port: int = 0,
    threads: int | None = None,
    dry_run: bool = False,
) -> None:
    """Start the resident decode service on the host; ready means that a real token came out."""
    from remote.service import ServeRequest
    from remote.service import serve as start_service
    from remote.site import open_site

    request = ServeRequest(
        pack=pack, runner=runner, slots=slots, bucket=bucket, dtype=dtype, port=port, threads=threads
    )
    with open_site(console, host, dry_run=dry_run) as site:
        ready = start_service(site, request)
        if dry_run:
            return

    def show() -> None:
        console.pairs({k: v for k, v in ready.items() if k != "plan"})
        console.line(f"reach it from here: invoke remote.forward --host {site.name}")

    console.result(ready, show)


@verb()
def status(console: Console, host: str | None = None) -> None:
    """The service's state: job, readiness, url on the host, pack, runner, start-up times."""
    from remote.service import status as service_status
    from remote.site import live_site

    with live_site(console, host) as site:
        found = service_status(site)
        console.result(found, lambda: console.pairs({k: v for k, v in found.items() if k != "plan"}))


@verb(follow="stay and show what comes; Ctrl-C leaves the service running")
def logs(console: Console, host: str | None = None, follow: bool = False) -> None:
    """The service's log."""
    from remote.service import read_log
    from remote.site import live_site

    with live_site(console, host) as site:
        console.result({"lines": read_log(site, console.line, follow=follow)}, lambda: None)


@verb()
def stop(console: Console, host: str | None = None, dry_run: bool = False) -> None:
    """Stop the service: it drains its streams, then ends."""
    from remote.service import stop as stop_service
    from remote.site import open_site

    with open_site(console, host, dry_run=dry_run) as site:
        done = stop_service(site)
        if not dry_run:
            console.result(done)


@verb(port="the port here; 0 takes a free one")
def forward(console: Console, host: str | None = None, port: int = 0) -> None:
    """Make the service reachable at a port of this machine's 127.0.0.1 until Ctrl-C; prints url and token
    file.
    """
    from remote.service import hold_forward
    from remote.site import live_site

    with live_site(console, host) as site:
        hold_forward(site, port)


@verb(
    profile="a profile of profiles/bench",
    pack="a pack on the host; the contract's newest when left out",
    requests="measured requests per stream instead of the profile's; makes the run exploratory",
    warmup="warm-up requests per stream instead of the profile's; makes the run exploratory",
    results="the results folder of a checkout",
)
def bench(
    console: Console,
    host: str | None = None,
    profile: str = "decode_64_256",
    pack: str | None = None,
    requests: int | None = None,
    warmup: int | None = None,
    results: str = "results",
    dry_run: bool = False,
) -> None:
    """Measure one profile against the resident service; the run directory comes back into the results
    folder.
    """
    from lean.bench.results import show_run
    from remote.measure import bench as measure
    from remote.site import open_site

    with open_site(console, host, dry_run=dry_run) as site:
        run = measure(site, profile, results=Path(results), pack=pack, requests=requests, warmup=warmup)
    if dry_run:
        return
    console.result(
        run.document | {"path": str(run.path)}, lambda: run_table(console, run.path, show_run(run.path))
    )
    if run.error is not None:
        raise Exit(f"error: {run.error}", code=run.error.exit_code)  # the document has been printed


@verb(
    rounds="how often each command runs, after one run that does not count",
    peer="a Python with transformers, on the host; left out, that row is too",
    results="the results folder of a checkout",
)
def costs(
    console: Console,
    host: str | None = None,
    rounds: int = 7,
    peer: str | None = None,
    results: str = "results",
) -> None:
    """Measure what the tool itself costs: listing, no-op sync, first token, memory, decode; keep the
    record.
    """
    from remote.costs import measure_costs, write_record
    from remote.site import live_site

    with live_site(console, host) as site:
        record = measure_costs(site, rounds=rounds, peer=Path(peer).absolute() if peer else None)
    path = write_record(record, Path(results))

    def show() -> None:
        console.table(("what", "measured", "beside", "limit", "kept"), record["rows"])
        console.line(str(path))

    console.result(record | {"path": str(path)}, show)
