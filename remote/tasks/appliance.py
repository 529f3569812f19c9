"""The appliance's verbs: prove the toolchain, fetch, probe, pack, inspect, lay out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lean.errors import UsageError
from remote.console import Console, size
from remote.tasks.verb import verb


@verb(several=True, target="compile for these, comma-separated; sm_121 and sm_90 when left out")
def verify(
    console: Console, host: str | None = None, target: str | None = None, dry_run: bool = False
) -> None:
    """Prove the toolchain: a vector add from Python to TileIR, cubin and SASS, run where there is a GPU."""
    from remote.appliance import toolchain
    from remote.host.site import open_site

    with open_site(console, host, dry_run=dry_run) as site:
        document = toolchain.verify(site, target)
        site.result(document, verify_table(console, document))


@verb(
    several=True,
    source="hf, modelscope or local; hf when left out, but the demo's own checkpoint comes with the release",
    model="<org>/<name>; the contract's model when left out",
    revision="branch, tag or commit; the contract's when left out",
    path="with --source local: a directory on the host",
    allow="only files that match this pattern, for example '*.json'",
)
def fetch(
    console: Console,
    host: str | None = None,
    source: str | None = None,
    model: str | None = None,
    revision: str | None = None,
    path: str | None = None,
    allow: str | None = None,
    dry_run: bool = False,
) -> None:
    """Fetch a model snapshot onto the host: revision pinned, every file hashed, complete marker last."""
    from remote.appliance import models
    from remote.host.site import open_site

    with open_site(console, host, dry_run=dry_run) as site:
        done = models.fetch(site, source=source, model=model, revision=revision, path=path, allow=allow)
        site.result(done)


@verb(
    several=True,
    source="hf or modelscope",
    model="<org>/<name>; the contract's model when left out",
    revision="branch, tag or commit; the contract's when left out",
    allow="only files that match this pattern, for example '*.json'",
    url="one file of this address, instead of a model",
    target="with --url: an absolute path on the host",
    replace="with --url: another file at the target may be lost",
    spool="what may wait on this machine's disk, such as 2GiB",
)
def relay(
    console: Console,
    host: str | None = None,
    source: str = "hf",
    model: str | None = None,
    revision: str | None = None,
    allow: str | None = None,
    url: str | None = None,
    target: str | None = None,
    replace: bool = False,
    spool: str = "2GiB",
    dry_run: bool = False,
) -> None:
    """Download here and stream on to a host without internet; a rerun resumes both legs."""
    from remote.appliance import relay
    from remote.host.site import open_site

    request = relay.RelayRequest(
        source=source,
        model=model,
        revision=revision,
        allow=allow,
        url=url,
        target=target,
        replace=replace,
        spool=spool,
    )
    with open_site(console, host, dry_run=dry_run) as site:
        done = relay.relay(site, request)
        site.result(done)


@verb(
    several=True,
    model="a model directory on the host; the newest snapshot of the contract's model when left out",
)
def probe(console: Console, host: str | None = None, model: str | None = None, dry_run: bool = False) -> None:
    """Say what a model directory on the host holds: shards present and missing, sizes, contract match."""
    from remote.appliance import models
    from remote.host.site import open_site

    with open_site(console, host, dry_run=dry_run) as site:
        found = models.probe(site, model)
        site.result(found)


@verb(
    several=True,
    model="a model directory on the host; the newest snapshot of the contract's model when left out",
    random="a seed: random weights in the place of a model's, for measuring; no result of them is a claim",
    encoding="of the weights; fp8-e4m3, int4-codebook and nvfp4 make a contract of their own, exploratory",
    target="cpu or chips such as sm_90, comma-separated; the contract's when left out",
    kernels="a folder on the host that `lean.leanpack kernels` made elsewhere, in the place of a compiler",
    manifest_only="print what would be built and write nothing",
    overwrite="build anew even where the same pack is there",
)
def pack(
    console: Console,
    host: str | None = None,
    model: str | None = None,
    random: str | None = None,
    encoding: str | None = None,
    target: str | None = None,
    kernels: str | None = None,
    manifest_only: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Build the host contract's leanpack on the host; the same pack again is a no-op."""
    from remote.appliance import models
    from remote.host.site import open_site

    with open_site(console, host, dry_run=dry_run) as site:
        done = models.pack(
            site,
            model=model,
            random=seed_of(random),
            encoding=encoding,
            target=target,
            kernels=kernels,
            manifest_only=manifest_only,
            overwrite=overwrite,
        )
        site.result(done)


@verb(pack="a pack on the host; the contract's newest when left out")
def inspect(console: Console, host: str | None = None, pack: str | None = None) -> None:
    """Show a pack's manifest, targets, kernels and hashes, without loading it."""
    from remote.appliance import models
    from remote.host.site import live_site

    with live_site(console, host) as site:
        found = models.inspect(site, pack)

    def show() -> None:
        manifest = found["manifest"]
        console.pairs({k: v for k, v in found.items() if k != "manifest"} | {"source": origin_of(manifest)})
        console.table(TARGET_COLUMNS, target_rows(manifest), title="targets")
        if kernels := kernel_rows(manifest):
            console.table(KERNEL_COLUMNS, kernels, title="kernels")
        rows = [
            (t["name"], t["dtype"], " × ".join(map(str, t["shape"])), t["file"], t["offset"], size(t["size"]))
            for t in manifest["tensors"]
        ]
        console.table(("tensor", "dtype", "shape", "file", "offset", "size"), rows)

    console.result(found, show)


@verb(
    several=True,
    pack="a pack on the host; the contract's newest when left out",
    slots="streams at once: 1, 2, 4 or 8",
)
def layout(
    console: Console, host: str | None = None, pack: str | None = None, slots: int = 1, dry_run: bool = False
) -> None:
    """Show the resident plan of a real pack on the host: weights, key-value cache and scratch, in bytes."""
    from remote.appliance import models
    from remote.host.site import open_site

    with open_site(console, host, dry_run=dry_run) as site:
        document = models.layout(site, pack, slots)
        site.result(document, plan_table(console, document))


def verify_table(console: Console, document: Mapping[str, Any]) -> Callable[[], None]:
    """How a toolchain proof is shown: one row per stage."""

    def show() -> None:
        rows = [
            (
                s["stage"],
                s.get("target") or "",
                s.get("case") or "",
                s["status"],
                s.get("file") or s.get("detail") or "",
            )
            for s in document["stages"]
        ]
        console.table(("stage", "target", "case", "", "file"), rows)
        console.line(f"{document['status']}; every stage as a file in {document['artifacts']}")

    return show


TARGET_COLUMNS = ("target", "runner", "kernels", "most registers", "most shared memory", "that spill", "size")
KERNEL_COLUMNS = ("target", "kernel", "grid", "registers", "shared memory", "stack", "spills", "cubin")


def seed_of(text: str | None) -> int | None:
    """The seed of random weights as given on the command line. Errors: `UsageError`."""
    if text is not None and not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise UsageError(f"--random: expected a seed, a number from 0 on, got {text[:40]!r}")
    return None if text is None else int(text)


def origin_of(manifest: Mapping[str, Any]) -> str:
    """The weights' origin in a word or two."""
    source = manifest["source"]
    return f"random, seed {source['seed']}" if source["kind"] == "random" else source["id"] or source["kind"]


def target_rows(manifest: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """One row per target: how many kernels, and the most that any of them takes."""
    rows: list[tuple[object, ...]] = []
    for target in manifest["targets"]:
        kernels, prefix = target["kernels"], f"targets/{target['name']}/"
        rows.append(
            (
                target["name"],
                target["runner"],
                len(kernels),
                max((kernel["registers"] for kernel in kernels), default=""),
                max((kernel["shared_bytes"] for kernel in kernels), default=""),
                sum(spills(kernel) > 0 for kernel in kernels),
                size(sum(file["size"] for file in manifest["files"] if file["path"].startswith(prefix))),
            )
        )
    return rows


def kernel_rows(manifest: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """One row per kernel and target."""
    sizes = {file["path"]: file["size"] for file in manifest["files"]}
    return [
        (
            target["name"],
            kernel["name"],
            " × ".join(map(str, kernel["grid"])),
            kernel["registers"],
            kernel["shared_bytes"],
            kernel["stack_bytes"],
            spills(kernel),
            size(sizes[kernel["cubin"]]),
        )
        for target in manifest["targets"]
        for kernel in target["kernels"]
    ]


def spills(kernel: Mapping[str, Any]) -> int:
    """Instructions on registers that did not fit."""
    return int(kernel["spill_stores"] + kernel["spill_loads"])


_PROJECTED = (
    *("target", "read_bytes_per_token", "achievable_read_gbs", "measured_read_gbs", "share", "other_ms"),
    *("tokens_per_second", "basis"),
)


def plan_table(console: Console, document: Mapping[str, Any]) -> Callable[[], None]:
    """How a resident plan is shown: its parts, and what other slot counts would take."""

    def show() -> None:
        parts = [
            (k.removesuffix("_bytes"), f"{v:,}", size(v)) for k, v in document.items() if k.endswith("_bytes")
        ]
        title = (
            f"{document['contract']}, {document['slots']} slot(s) of {document['padded_length']} positions"
        )
        console.table(("part", "bytes", ""), parts, title=title)
        rows = [(p["slots"], size(p["kv_bytes"]), size(p["total_bytes"])) for p in document["by_slots"]]
        console.table(("slots", "kv cache", "total"), rows)
        if projected := document.get("projection"):
            console.pairs({"projection": projected["label"]} | {k: projected[k] for k in _PROJECTED})

    return show
