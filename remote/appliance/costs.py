"""What the tool itself costs, each cost beside what it is compared with, in turn, every sample kept.

Not a test: numbers of a busy machine are recorded as they are, with its load.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from lean.errors import LeanError, UsageError
from lean.markdown import table
from remote.appliance.models import newest_pack, newest_snapshot
from remote.host.python import local_program
from remote.host.site import LiveSite
from remote.paths import REPOSITORY, STATE
from remote.transfer.release import read_release

MIB = 1 << 20
AGREEMENT = 0.05  # two clients of one service may differ by so much in their medians
PACE_MS = 5.0  # from token to token of a service without a model
Pair = tuple[list[str], list[str]]


def measure_costs(
    site: LiveSite,
    *,
    rounds: int,
    peer: str | None,
    benchy: str | None = None,
    records: int | None = None,
) -> dict[str, Any]:
    """The costs the project sets itself limits for, on one host and this laptop.

    `peer` is a Python with transformers, on the host, `benchy` the program llama-benchy there, and `records`
    how many run records are listed and compared; without one its rows are left out. Errors: those of the
    programs measured, and `LeanError` for a command that fails.
    """
    invoke = [sys.executable, "-m", "invoke"]
    host = ["--host", site.name]
    head = record_head("costs/v1", site.name)
    site.console.phase("this side: `invoke --list` and a no-op `remote.sync`, in turn with bare Python")
    listing = in_turn(([*invoke, "--list"], [sys.executable, "-c", "pass"]), rounds)
    syncing = in_turn(([*invoke, "remote.sync", *host], [sys.executable, "-c", "import fabric"]), rounds)
    kept = None
    if records is not None:
        site.console.phase(f"this side: {records} run records, listed and compared in turn with bare Python")
        kept = measure_records(records, rounds)
    site.console.phase("the host: start to first token, and memory, in turn with a bare `import torch`")
    pack = newest_pack(site)
    start = site.job("costs-start", "lean.costs", "start", "--pack", pack, "--rounds", str(rounds))
    record: dict[str, Any] = {**head, "list": listing, "sync": syncing, "start": start, "decode": None}
    record["records"] = kept
    if peer is not None:
        site.console.phase("the host: CPU decode, in turn with transformers' generate")
        record["decode"] = _decode(site, pack, peer, rounds)
    if benchy is not None:
        site.console.phase("the host: our client, in turn with llama-benchy, against the same service")
        arguments = ("--pack", pack, "--benchy", benchy, "--rounds", str(rounds))
        record["clients"] = site.job("costs-clients", "lean.costs", "clients", *arguments)
        site.console.phase("the host: both clients against a service whose tokens come at a set pace")
        pace = ("--pace-ms", str(PACE_MS))
        record["paced"] = site.job("costs-clients", "lean.costs", "clients", *arguments, *pace)
    return record | {"rows": [list(row) for row in rows(record)]}


def measure_records(count: int, rounds: int) -> dict[str, Any]:
    """`results.list` and `results.compare` of a folder of so many run records, made of a kept one.

    The round that does not count is the first listing of all, which reads every record in full. Errors:
    `UsageError` without a kept run.
    """
    kept = sorted(REPOSITORY.glob("results/v1/*/decode_64_256/*/run.json"), key=lambda run: run.parent.name)
    if not kept:
        raise UsageError(
            "--records: no run of decode_64_256 is kept to make others of; run remote.bench first"
        )
    out = STATE / "records"
    shutil.rmtree(out, ignore_errors=True)
    try:
        options = ("--like", str(kept[-1].parent), "--out", str(out), "--count", str(count))
        made = local_program("lean.costs", "records", *options)
        invoke, bare = [sys.executable, "-m", "invoke"], [sys.executable, "-c", "pass"]
        where = ["--results", str(out)]
        listing = in_turn(([*invoke, "results.list", *where], bare), rounds)
        comparing = in_turn(([*invoke, "results.compare", made["first"], made["last"], *where], bare), rounds)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return {"made": made, "list": listing, "compare": comparing}


def record_head(schema: str, host: str) -> dict[str, Any]:
    """When, where and with which code a record is taken. Before the measuring: its load is not ours."""
    release = read_release(REPOSITORY)
    return {
        "schema": schema,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": host,
        "git_sha": release.git_sha,
        "dirty": release.dirty,
        "load_average": os.getloadavg(),
        "processors": os.cpu_count(),
    }


def where_and_when(record: Mapping[str, Any]) -> str:
    """The head of a record as its page begins."""
    return (
        f"Host {record['host']}, code {record['git_sha'][:7]}{', dirty' if record['dirty'] else ''}, "
        f"{record['processors']} processors, load {record['load_average'][0]:.2f} before."
    )


def in_turn(pair: Pair, rounds: int) -> dict[str, list[float]]:
    """Wall seconds of two commands run alternately, after one round that does not count."""
    samples = [(_seconds(pair[0]), _seconds(pair[1])) for _ in range(rounds + 1)][1:]
    return {"ours": [ours for ours, _ in samples], "bare": [bare for _, bare in samples]}


COLUMNS = ("what", "measured", "beside", "limit", "kept")


def rows(record: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """A record by `COLUMNS`, medians throughout."""
    listing, syncing, start = record["list"], record["sync"], record["start"]
    first = _of(start["service"], "seconds") - _of(start["torch_import"], "seconds")
    service, torch, product = (
        _of(start[name], "resident_bytes") for name in ("service", "torch_import", "torch_product")
    )
    memory, beyond = service - torch, service - product
    allowed = 1.3 * start["pack_bytes"]
    over = median(syncing["ours"]) - median(syncing["bare"])
    found = [
        _row("invoke --list", median(listing["ours"]), "s", "python -c pass", 0.4, median(listing["bare"])),
        _row("no-op sync, over its peer", over, "s", "python and fabric", 1.0, median(syncing["bare"])),
        _row(
            "first token, over its peer",
            first,
            "s",
            "import torch",
            1.0,
            _of(start["torch_import"], "seconds"),
        ),
        _row("resident, over import torch", memory / MIB, "MiB", "import torch", allowed / MIB, torch / MIB),
        _row(
            "resident, over one product", beyond / MIB, "MiB", "torch and one", allowed / MIB, product / MIB
        ),
    ]
    found += _records_rows(record.get("records"))
    private = [_of(start[name], "private_bytes") / MIB for name in ("service", "torch_import")]
    found.append(
        ("private memory", f"{private[0]:.1f} MiB", f"import torch {private[1]:.1f} MiB", "none set", "-")
    )
    decode = record["decode"]
    if decode is not None:
        ours, theirs = median(decode["ours"]), median(decode["peer"])
        kept = "yes" if ours >= theirs else "no"
        found.append(
            ("CPU decode", f"{ours:.1f} tokens/s", f"transformers {theirs:.1f}", "at least the peer", kept)
        )
    return (
        found
        + _client_rows(record.get("clients"), "our client")
        + _client_rows(record.get("paced"), "paced service")
    )


def _client_rows(clients: Mapping[str, Any] | None, of: str) -> list[tuple[str, str, str, str, str]]:
    """How our client's figures stand to llama-benchy's of the same service; none for a record without it.

    From a real service each also takes processor time, and so they differ; from a paced one that takes none.
    """
    if clients is None:
        return []
    ours, theirs = clients["ours"], clients["theirs"]
    table = (
        (f"decode tokens/s, {of}", "decode_tokens_per_s", "decode_ratio", 1.0, "tokens/s"),
        (f"TTFT, {of}", "ttft_s", "ttft_ratio", 1e3, "ms"),
    )
    return [
        (
            f"{what}, {clients['prompt']} in, {clients['new']} out",
            f"{median(ours[name]) * factor:.1f} {unit}, ratio {clients[ratio]:.3f} "
            f"({min(clients[ratio + 's']):.3f} to {max(clients[ratio + 's']):.3f})",
            f"{clients['peer']} {median(theirs[name]) * factor:.1f} {unit}",
            f"ratio within {AGREEMENT:.0%} of 1",
            "yes" if abs(clients[ratio] - 1) <= AGREEMENT else "no",
        )
        for what, name, ratio, factor, unit in table
    ]


def write_costs(record: Mapping[str, Any], results: Path) -> Path:
    """Keep the record with a page for people. Errors: `UsageError` when it exists."""
    title = f"What the tool costs, {record['taken']}"
    intro = (
        f"{where_and_when(record)} Medians of commands run in turn; every sample is in the record. Resident "
        "memory counts pages of library files; the service gives back those that only starting up touched, "
        "so it can stand below a bare import. Private memory has no such part."
    )
    return write_record(record, "costs", results, page(title, intro, COLUMNS, record["rows"]))


def write_record(record: Mapping[str, Any], kind: str, results: Path, text: str) -> Path:
    """Write `v1/<host>/<kind>/<UTC>-<sha7>/` with the record and its page, whole or not at all.

    Errors: `UsageError` when it exists.
    """
    stamp = datetime.fromisoformat(record["taken"]).strftime("%Y%m%dT%H%M%SZ")
    name = f"{stamp}-{record['git_sha'][:7]}" + ("-dirty" if record["dirty"] else "")
    final: Path = results / "v1" / record["host"] / kind / name
    if final.exists():
        raise UsageError(f"{final}: exists; records are never rewritten")
    partial = final.with_name(f".{name}.partial")
    partial.mkdir(parents=True)
    (partial / f"{kind}.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    (partial / "report.md").write_text(text)
    partial.rename(final)
    return final


def page(title: str, intro: str, columns: Sequence[str], found: Sequence[Sequence[str]]) -> str:
    """A record for people, in Markdown."""
    return f"# {title}\n\n{intro}\n\n{table(columns, found)}\n"


def _decode(site: LiveSite, pack: str, peer: str, rounds: int) -> dict[str, Any]:
    arguments = ["--pack", pack, "--checkpoint", newest_snapshot(site), "--peer", peer]
    return site.job("costs-decode", "lean.costs", "decode", *arguments, "--rounds", str(rounds))


def _row(
    what: str, value: float, unit: str, peer: str, limit: float, beside: float
) -> tuple[str, str, str, str, str]:
    kept = "yes" if value <= limit else "no"
    return what, f"{value:.3f} {unit}", f"{peer} {beside:.3f} {unit}", f"≤ {limit:.1f} {unit}", kept


def _records_rows(records: Mapping[str, Any] | None) -> list[tuple[str, str, str, str, str]]:
    return [
        _row(
            f"results.{verb}, {records['made']['count']} runs, over its peer",
            median(records[verb]["ours"]) - median(records[verb]["bare"]),
            "s",
            "python -c pass",
            1.0,
            median(records[verb]["bare"]),
        )
        for verb in ("list", "compare")
        if records is not None
    ]


def _of(samples: Sequence[Mapping[str, float]], field: str) -> float:
    return median(sample[field] for sample in samples)


def _seconds(argv: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        raise LeanError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return time.perf_counter() - started
