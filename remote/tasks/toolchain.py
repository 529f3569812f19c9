"""What a toolchain makes of the kernels, and how fast they are: gate, portability, bench, tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from remote.console import Console
from remote.tasks.verb import exit_with, verb, whole_number

THIS_MACHINE = "loopback"  # its name in hosts.yaml


@verb(
    several=True,
    target="chips, comma-separated; sm_121, sm_90 and the host's own when left out",
    precision="of these only, comma-separated, such as bf16,fp8-e4m3; no record is kept then",
    route="of these only, comma-separated, such as mma,weight-only; no record is kept then",
    kernels="a gate's folder on the host, compiled elsewhere, in the place of a compiler",
)
def gate(
    console: Console,
    host: str | None = None,
    target: str | None = None,
    precision: str | None = None,
    route: str | None = None,
    kernels: str | None = None,
    dry_run: bool = False,
) -> None:
    """Ask what compiler and chip make of each precision: cleared, compile-only or blocked, and why."""
    from lean.errors import from_document
    from remote.appliance import toolchain
    from remote.host.site import open_site
    from remote.paths import REPOSITORY

    with open_site(console, host, dry_run=dry_run) as site:
        document = toolchain.gate(
            site,
            results=REPOSITORY / "results",
            targets=target,
            precisions=precision,
            routes=route,
            kernels=kernels,
        )
        if dry_run:
            return
        document["record"] = None
        if document["whole"]:
            document["record"] = toolchain.keep(f"{document['artifacts']}/gate.json", site.name)
        site.result(document, gate_shown(console, document))
    if "error" in document:
        raise exit_with(from_document(document))


@verb(
    several=True,
    contract="name of a contract; the host's own when left out",
    encoding="of the weights, such as int4-codebook; the contract's own when left out",
    only="of these operations only, comma-separated, such as qkv,attention; no record is kept then",
    rows="of these numbers of rows only, comma-separated, such as 1,1024; no record is kept then",
    seed="of all random inputs",
    kernels="a folder on the host that `python -m lean.toolchain kernels --compile-only` made elsewhere",
)
def kernels(
    console: Console,
    host: str | None = None,
    contract: str | None = None,
    only: str | None = None,
    rows: str | None = None,
    seed: int | None = None,
    kernels: str | None = None,
    encoding: str | None = None,
    dry_run: bool = False,
) -> None:
    """Time the hot kernels on the contract's exact shapes: beside torch, and beside what the chip allows."""
    from lean.errors import from_document
    from remote.appliance import toolchain
    from remote.host.site import open_site

    number = whole_number("--seed", seed)
    with open_site(console, host, dry_run=dry_run) as site:
        document = toolchain.kernels(
            site, contract=contract, only=only, rows=rows, seed=number, folder=kernels, encoding=encoding
        )
        if dry_run:
            return
        document["record"] = None
        if document["whole"]:
            document["record"] = toolchain.keep(f"{document['artifacts']}/kernels.json", site.name)
        site.result(document, kernels_shown(console, document))
    if "error" in document:
        raise exit_with(from_document(document))


@verb(
    contract="name of a contract; the host's own when left out",
    encoding="of the weights, such as int4-codebook; the contract's own when left out",
    only="patterns of kernels, comma-separated, such as 'qkv.*,head.one'; all of them when left out",
    kernels="a folder on the host that `python -m lean.toolchain tune --compile-only` made elsewhere",
)
def tune(
    console: Console,
    host: str | None = None,
    contract: str | None = None,
    only: str | None = None,
    kernels: str | None = None,
    encoding: str | None = None,
    dry_run: bool = False,
) -> None:
    """Search for the tiles that the host's GPU is fastest with, and write them into kernels/tuning here."""
    from lean.errors import from_document
    from remote.appliance import toolchain
    from remote.host.site import open_site

    with open_site(console, host, dry_run=dry_run) as site:
        document = toolchain.tune(site, contract=contract, only=only, folder=kernels, encoding=encoding)
        if dry_run:
            return
        document["record"] = toolchain.keep(f"{document['artifacts']}/tune.json", site.name)
        site.result(document, tune_shown(console, document))
    if "error" in document:
        raise exit_with(from_document(document))


@verb(
    sizes="a geometry: tiny, 0.6b, 1.7b or 4b, with +ENCODING for its encoded kernels",
    target="chips, comma-separated, or all of them",
    workers="compiles at a time; one to a core when left out",
    cold="compile all of it, whatever is in the cache",
    keep="keep the record below results/v1/loopback/portability, and its figure in docs/retargeting.md",
)
def portability(
    console: Console,
    sizes: str = "4b",
    target: str = "all",
    workers: int | None = None,
    cold: bool = False,
    keep: bool = False,
) -> None:
    """Compile a geometry's kernels, from unchanged source, for every chip: what fits, what does not, and why.

    It runs on this machine and needs no GPU. What was compiled before comes from `.lean/portability`.
    """
    import json

    from lean.errors import UsageError
    from remote.appliance import toolchain
    from remote.host.python import local_program
    from remote.paths import STATE

    if keep and (sizes, target) != ("4b", "all"):
        raise UsageError("--keep: a record is of 4b and all chips; leave out --sizes and --target")
    count = whole_number("--workers", workers)
    options = ["--sizes", sizes, "--target", target]
    options += ["--workers", str(count)] if count is not None else []
    options += [] if cold else ["--cache", str(STATE / "portability")]
    document = local_program("lean.toolchain", "portability", *options, on_line=console.line)
    document["record"] = None
    if keep:
        STATE.mkdir(parents=True, exist_ok=True)
        file = STATE / "portability.json"
        file.write_text(json.dumps(document))
        document["record"] = toolchain.keep(str(file), THIS_MACHINE)
    console.result(document, portability_shown(console, document))


def gate_shown(console: Console, document: Mapping[str, Any]) -> Callable[[], None]:
    """How a gate is shown: statuses by chip, what is blocked, what changed, and what to start from."""
    from lean.toolchain.shown import gate_lines, gate_tables

    def show() -> None:
        for table in gate_tables(document):
            console.table(table.columns, table.rows, table.title or None)
        for line in gate_lines(document):
            console.line(line)
        kept = document["record"] or "none, for a part only was asked"
        console.line(f"record: {kept}; every stage as a file: {document['artifacts']}")

    return show


def kernels_shown(console: Console, document: Mapping[str, Any]) -> Callable[[], None]:
    """How a bench is shown: one row for each operation and number of rows, then the limits."""
    from lean.toolchain.speed.shown import kernels_lines, kernels_tables

    def show() -> None:
        for table in kernels_tables(document):
            console.table(table.columns, table.rows, table.title or None)
        for line in kernels_lines(document):
            console.line(line)
        kept = document["record"] or "none, for a part only was timed"
        console.line(f"record: {kept}; every stage as a file: {document['artifacts']}")

    return show


def tune_shown(console: Console, document: Mapping[str, Any]) -> Callable[[], None]:
    """How a search for tiles is shown: a row for each kernel, then what did not pass, and what to commit."""
    from lean.toolchain.speed.shown import tune_tables

    def show() -> None:
        for table in tune_tables(document):
            console.table(table.columns, table.rows, table.title or None)
        changed = f"kernels/tuning/{document['target']}.json"
        console.line(f"commit {changed} and its record: {document['record']}")

    return show


def portability_shown(console: Console, document: Mapping[str, Any]) -> Callable[[], None]:
    """How a portability matrix is shown: one row per chip, every kernel, what is not ok, and the figure."""
    from lean.toolchain.shown import figure_line, portability_tables

    def show() -> None:
        for table in portability_tables(document):
            console.table(table.columns, table.rows, table.title or None)
        console.line(figure_line(document))
        console.line(
            f"{document['compiled']} kernels compiled, {document['from_cache']} from the cache, "
            f"{document['seconds']:.1f} s"
        )
        if document["record"]:
            console.line(f"record: {document['record']}")

    return show
