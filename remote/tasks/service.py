"""The resident service's verbs, the measurement against it, and the whole loop as one verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from remote.console import Console
from remote.tasks.results import show_measured
from remote.tasks.verb import number, verb, whole_number


@verb(
    several=True,
    pack="a pack on the host; the contract's newest when left out",
    runner="the backend; there is no silent fallback",
    slots="streams at once: 1, 2, 4 or 8",
    bucket="always decode this many rows: streams are then byte-identical whatever their neighbours",
    dtype="of activations and cache: float32 or bfloat16",
    port="on the host's 127.0.0.1; 0 takes a free one",
    threads="CPU threads; chosen by the size of the weights when left out",
    allow_uncleared="serve an encoding that the host's precision gate has not cleared",
    split_k="cut each head's share of the output projection into 1, 2, 4 or 8 parts; whole when left out",
    regions="time the regions of each decode step, into a file on the host that the answer names",
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
    allow_uncleared: bool = False,
    split_k: int | None = None,
    regions: bool = False,
    dry_run: bool = False,
) -> None:
    """Start the resident decode service on the host; ready means that a real token came out."""
    from remote.appliance import service
    from remote.host.site import open_site

    request = service.ServeRequest(
        pack=pack,
        runner=runner,
        slots=slots,
        bucket=bucket,
        dtype=dtype,
        port=port,
        threads=threads,
        allow_uncleared=allow_uncleared,
        split_k=whole_number("--split-k", split_k),
        regions=regions,
    )
    with open_site(console, host, dry_run=dry_run) as site:
        ready = service.serve(site, request)

        def show() -> None:
            console.pairs({k: v for k, v in ready.items() if k != "plan"})
            console.line(f"reach it from here: invoke remote.forward --host {site.name}")

        site.result(ready, show)


@verb(several=True)
def status(console: Console, host: str | None = None) -> None:
    """Show the service's state: job, readiness, url on the host, pack, runner, start-up times."""
    from remote.appliance import service
    from remote.host.site import live_site

    with live_site(console, host, environment=False) as site:
        found = service.status(site)
        console.result(found, lambda: console.pairs({k: v for k, v in found.items() if k != "plan"}))


@verb(follow="stay and show what comes; Ctrl-C leaves the service running")
def logs(console: Console, host: str | None = None, follow: bool = False) -> None:
    """Show the service's log."""
    from remote.appliance import service
    from remote.host.site import live_site

    with live_site(console, host, environment=False) as site:
        console.result({"lines": service.read_log(site, console.line, follow=follow)}, lambda: None)


@verb(several=True)
def stop(console: Console, host: str | None = None, dry_run: bool = False) -> None:
    """Stop the service: it drains its streams, then ends."""
    from remote.appliance import service
    from remote.host.site import open_site

    with open_site(console, host, dry_run=dry_run, environment=False) as site:
        done = service.stop(site)
        site.result(done)


@verb(port="the port here; 0 takes a free one", system="another system that runs there, instead of ours")
def forward(console: Console, host: str | None = None, port: int = 0, system: str | None = None) -> None:
    """Carry a port of this machine's 127.0.0.1 to the service until Ctrl-C."""
    from remote.appliance import baseline, service
    from remote.host.site import live_site

    with live_site(console, host, environment=False) as site:
        way = service.forwarded(site, port) if system is None else baseline.forwarded(site, system, port)
        with way as (forward, facts):
            console.result({"url": f"{forward.url}/v1", **facts})
            console.line("Ctrl-C ends the forward and leaves the service running")
            forward.hold()


@verb(
    profile="a profile of profiles/bench",
    pack="a pack on the host; the contract's newest when left out",
    requests="measured requests per stream instead of the profile's; makes the run exploratory",
    warmup="warm-up requests per stream instead of the profile's; makes the run exploratory",
    runner="cuda or torch; by the contract's target when left out",
    allow_uncleared="measure an encoding that the host's precision gate has not cleared",
    split_k="cut each head's share of the output projection into 1, 2, 4 or 8 parts; makes it exploratory",
    concurrency="streams of a round, more than slots or fewer; makes the run exploratory",
    rate="requests a second, sent whether or not others were answered; makes the run exploratory",
    arrivals="how a rate's gaps are: poisson (when left out) or fixed; closed: rounds, whatever the profile",
    results="the results folder of a checkout",
)
def bench(
    console: Console,
    host: str | None = None,
    profile: str = "decode_64_256",
    pack: str | None = None,
    requests: int | None = None,
    warmup: int | None = None,
    runner: str | None = None,
    allow_uncleared: bool = False,
    split_k: int | None = None,
    concurrency: int | None = None,
    rate: str | None = None,
    arrivals: str | None = None,
    results: str = "results",
    dry_run: bool = False,
) -> None:
    """Measure one profile in process and against the resident service; the run directory comes back."""
    from remote.appliance import bench
    from remote.host.site import open_site

    request = bench.BenchRequest(
        profile=profile,
        pack=pack,
        requests=whole_number("--requests", requests),
        warmup=whole_number("--warmup", warmup),
        runner=runner,
        allow_uncleared=allow_uncleared,
        split_k=whole_number("--split-k", split_k),
        load=bench.Load(
            concurrency=whole_number("--concurrency", concurrency),
            rate_per_s=number("--rate", rate),
            arrivals=arrivals,
        ),
    )
    with open_site(console, host, dry_run=dry_run) as site:
        run = bench.bench(site, request, results=Path(results))
    if not dry_run:
        show_measured(console, run)


@verb(
    pack="an encoded pack on the host",
    against="the bf16 pack of the same weights; the contract's newest when left out",
    prompts="passages to go on from; 16 when left out",
    tokens="greedy tokens behind each of them; 64 when left out",
    text="a text on the host that no model was trained on; by default one of our own",
    runner="cuda or torch; by the contract's target when left out",
    results="the results folder of a checkout",
)
def accuracy(
    console: Console,
    pack: str,
    host: str | None = None,
    against: str | None = None,
    prompts: int | None = None,
    tokens: int | None = None,
    text: str | None = None,
    runner: str | None = None,
    results: str = "results",
    dry_run: bool = False,
) -> None:
    """Compare an encoded pack's answers with its bf16 pack's, and keep the record."""
    from remote.appliance import accuracy
    from remote.host.site import open_site

    request = accuracy.AccuracyRequest(
        pack=pack,
        against=against,
        prompts=whole_number("--prompts", prompts),
        tokens=whole_number("--tokens", tokens),
        text=text,
        runner=runner,
    )
    with open_site(console, host, dry_run=dry_run) as site:
        found = accuracy.measure_accuracy(site, request, results=Path(results))
        site.result(found, accuracy_shown(console, found))


def accuracy_shown(console: Console, found: Mapping[str, Any]) -> Callable[[], None]:
    """How a comparison is shown: one line a figure, and where the record lies."""

    def show() -> None:
        rows = [(name, f"{value:.4g}") for name, value in found["summary"].items() if value is not None]
        console.table((f"{found['pack']['encoding']} against bf16", ""), rows)
        if found["loss"] is not None:
            console.pairs({f"held-out {name}": f"{value:.6g}" for name, value in found["loss"].items()})
        console.line(f"{found['label']}: {'; '.join(found['label_reasons'])}")
        console.line(f"record: {found['record']}")

    return show


@verb(
    profile="a profile of profiles/bench",
    pack="a pack on the host; the contract's newest when left out",
    runner="cuda or torch; by the contract's target when left out",
    split_k="cut each head's share of the output projection into 1, 2, 4 or 8 parts; whole when left out",
    results="the results folder of a checkout",
)
def regions(
    console: Console,
    host: str | None = None,
    profile: str = "decode_64_256",
    pack: str | None = None,
    runner: str | None = None,
    split_k: int | None = None,
    results: str = "results",
    dry_run: bool = False,
) -> None:
    """Time the regions of decode steps in a supplementary pass, waits apart, and keep the record."""
    from lean.contracts import load_profile
    from remote.appliance import regions
    from remote.host.site import open_site

    request = regions.RegionsRequest(
        profile=load_profile(profile).id,
        pack=pack,
        runner=runner,
        split_k=whole_number("--split-k", split_k),
    )
    with open_site(console, host, dry_run=dry_run) as site:
        found = regions.time_regions(site, request, results=Path(results))
        site.result(found, regions_shown(console, found))


def regions_shown(console: Console, found: Mapping[str, Any]) -> Callable[[], None]:
    """How a pass is shown: a line a region, what the timing costs, and where the record lies."""

    def show() -> None:
        console.table(found["columns"], found["rows"])
        console.line(f"a step: {found['plain_step_ms']:.4g} ms, {found['timed_step_ms']:.4g} ms when timed")
        console.line(f"{found['label']}; record: {found['record']}")

    return show


@verb(profile="a profile of profiles/bench")
def demo(
    console: Console, host: str = "loopback", profile: str = "decode_64_256", dry_run: bool = False
) -> None:
    """Run the whole loop on the embedded host: sync, verify, fetch, pack, serve, measure, pull, show."""
    from remote.appliance.demo import whole_loop

    run = whole_loop(console, host, profile, dry_run=dry_run)
    if not dry_run:
        show_measured(console, run)


@verb(
    rounds="how often each command runs, after one run that does not count",
    peer="a Python with transformers, on the host; left out, that row is too",
    benchy="the program llama-benchy on the host, as a second client; left out, its rows are too",
    records="so many run records, such as 10000, are listed and compared; left out, those rows are too",
    results="the results folder of a checkout",
)
def costs(
    console: Console,
    host: str | None = None,
    rounds: int = 7,
    peer: str | None = None,
    benchy: str | None = None,
    records: int | None = None,
    results: str = "results",
) -> None:
    """Measure what the tool itself costs and keep the record: listing, no-op sync, first token, memory."""
    from remote.appliance import costs
    from remote.host.site import live_site

    with live_site(console, host) as site:
        record = costs.measure_costs(
            site,
            rounds=rounds,
            peer=peer,
            benchy=benchy,
            records=whole_number("--records", records),
        )
    path = costs.write_costs(record, Path(results))

    def show() -> None:
        console.table(costs.COLUMNS, record["rows"])
        console.line(str(path))

    console.result(record | {"path": str(path)}, show)


@verb(
    rounds="how often each copy runs, after one run that does not count",
    mib="size of the one file in MiB",
    scratch="a folder here for the sources",
    results="the results folder of a checkout",
)
def transfers(
    console: Console,
    host: str | None = None,
    rounds: int = 7,
    mib: int = 1024,
    scratch: str = ".lean/transfers",
    results: str = "results",
) -> None:
    """Measure copies beside rsync, scp and ssh cat, and a relay beside its legs; keep the record."""
    from remote.appliance import transfer_costs
    from remote.host.site import live_site

    with live_site(console, host) as site:
        record = transfer_costs.measure_transfers(site, Path(scratch).absolute(), rounds=rounds, mib=mib)
    path = transfer_costs.write_transfers(record, Path(results))

    def show() -> None:
        console.table(transfer_costs.COLUMNS, record["rows"])
        console.line(str(path))

    console.result(record | {"path": str(path)}, show)
