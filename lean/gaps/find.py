"""Each kind of gap from what is in a checkout, never from what a page says of it."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kernels.qwen3 import kernel_specs
from kernels.tiles import load_tiles
from lean.bench.results import list_runs
from lean.bench.run_row import OURS, RunRow
from lean.contracts import BenchProfile, Contract, kernels_required, load_contract, load_profile
from lean.contracts.catalog import names
from lean.errors import ContractError, LeanError
from lean.kernel_sizes import sizes_of
from lean.toolchain.proof.record import unproven
from lean.toolchain.shapes import sizes_named
from lean.toolchain.sources import sha256_of
from lean.toolchain.tune.plan import read_tuning

Kind = Literal["kernel missing", "not compiled", "never run", "unproven", "static tiles", "unreadable"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NAMED = 3  # changed sources that are named; the rest is counted
GEOMETRIES = ("0.6b", "1.7b", "4b")  # of `show.portability --sizes`


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One thing that is not there: its kind, what it is about, what is wrong, and the verb that closes it."""

    kind: Kind
    about: str
    problem: str
    fix: str


def find_gaps(root: Path, index: Path | None = None) -> tuple[Gap, ...]:
    """Every gap of the checkout `root`, in the order of `KINDS`.

    `index`: see `list_runs`. What cannot be read is a gap too and hides no other.
    """
    contracts = [load_contract(name, root) for name in names(root / "profiles" / "contracts")]
    profiles = [load_profile(name, root) for name in names(root / "profiles" / "bench")]
    chips = [contract for contract in contracts if contract.target != "cpu"]  # a CPU runs no kernel of ours
    found = [
        *(gap for contract in chips for gap in kernels_missing(contract, root)),
        *not_compiled(chips, root),
        *never_run(contracts, profiles, root, index),
        *_proofs_missing(root),
        *_static_tiles(sorted({contract.target for contract in chips}), root),
    ]
    return tuple(sorted(found, key=lambda gap: KINDS.index(gap.kind)))


def kernels_missing(contract: Contract, root: Path) -> Iterator[Gap]:
    """Operations of a contract's decode step without a kernel, and kernels without a source at `root`."""
    try:
        specs = kernel_specs(sizes_of(contract), load_tiles(contract.target))
    except (ContractError, ValueError) as error:
        yield Gap(
            kind="kernel missing", about=contract.id, problem=str(error), fix="write the kernels it needs"
        )
        return
    there = {spec.operation for spec in specs}
    for need in kernels_required(contract.model.geometry):
        if need.op not in there:
            problem = f"no kernel does {need.op} {list(need.shape)}"
            yield Gap(
                kind="kernel missing", about=contract.id, problem=problem, fix=f"write kernels/{need.op}"
            )
    for function in sorted({spec.function for spec in specs}):
        module, _, name = function.partition(":")
        file = Path("kernels", *module.split(".")).with_suffix(".py")
        if name not in _functions(root / file):
            problem = f"{file} has no function {name}"
            yield Gap(kind="kernel missing", about=contract.id, problem=problem, fix=f"write it in {file}")


def not_compiled(contracts: Sequence[Contract], root: Path) -> Iterator[Gap]:
    """Chips of contracts whose kernels no kept portability record of these very sources compiled well."""
    records: dict[str, Mapping[str, Any]] = {}
    for path in sorted(root.glob("results/v1/*/portability/*/portability.json"), key=lambda p: p.parent.name):
        try:
            record = json.loads(path.read_bytes())
            records[str(record["sizes"])] = {
                "path": path.relative_to(root).as_posix(),
                "sources": dict(record["sources"]),
                "cells": {row["kernel"]: dict(row["cells"]) for row in record["kernels"]},
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield Gap(
                kind="unreadable",
                about=str(path),
                problem=f"{type(error).__name__}: {error}",
                fix="git checkout",
            )
    for name, target in sorted({(_geometry(contract), contract.target) for contract in contracts}):
        record = records.get(name, {})
        keep = " --keep" if name == "4b" else ", whose record only 4b keeps so far"
        fix = f"invoke show.portability --sizes {name}{keep}"
        if problem := _uncompiled(record, target, root):
            yield Gap(kind="not compiled", about=f"{name} on {target}", problem=problem, fix=fix)


def _is_ours(row: RunRow) -> bool:
    """Whether our service ran it, in a profile's own rounds."""
    return row.system == OURS and row.load is None


def never_run(
    contracts: Sequence[Contract], profiles: Sequence[BenchProfile], root: Path, index: Path | None = None
) -> Iterator[Gap]:
    """Profiles of a contract's buckets without a sound run: on no host at all, or on one that ran others."""
    runs = list_runs(root / "results", index)
    for broken in runs.broken:
        yield Gap(kind="unreadable", about=broken.path, problem=broken.problem, fix="git checkout the record")
    for contract in contracts:
        ran: dict[str, set[str]] = {}
        for row in runs.rows:
            if row.contract == contract.id and row.status == "ok" and _is_ours(row):
                ran.setdefault(row.host, set()).add(row.profile)
        for profile in profiles:
            bucket = contract.bucket(profile.prompt_tokens, profile.decode_tokens)
            if bucket is None or profile.batch not in bucket.batch:
                continue
            without = [host for host, seen in sorted(ran.items()) if profile.id not in seen]
            if not ran or without:
                problem = f"no sound run on {', '.join(without) or 'any host'}"
                fix = f"invoke remote.bench --profile {profile.id} on a host whose contract it is"
                yield Gap(kind="never run", about=f"{contract.id}, {profile.id}", problem=problem, fix=fix)


def _proofs_missing(root: Path) -> Iterator[Gap]:
    try:
        for line in unproven(root):
            source, _, why = line.partition(": ")
            yield Gap(
                kind="unproven", about=source, problem=why, fix="invoke remote.verify on a host with a GPU"
            )
    except LeanError as error:
        yield Gap(kind="unreadable", about="kernel proofs", problem=str(error), fix="git checkout the record")


def _static_tiles(targets: Sequence[str], root: Path) -> Iterator[Gap]:
    for target in targets:
        try:
            entries = read_tuning(target, root / "kernels" / "tuning")["tiles"]
        except LeanError as error:
            yield Gap(kind="unreadable", about=target, problem=str(error), fix="git checkout the tuning file")
            continue
        static = Counter(f"{e['path']} {e['kernel']}" for e in entries if e.get("basis") != "measured")
        if not entries:
            problem = "no entry at all: every tile is the rule's"
        elif static:
            several = (f"{name} ({n})" if n > 1 else name for name, n in sorted(static.items()))
            problem = f"{static.total()} of {len(entries)} were never measured: {', '.join(several)}"
        else:
            continue
        yield Gap(
            kind="static tiles",
            about=f"kernels/tuning/{target}.json",
            problem=problem,
            fix=f"invoke remote.tune on a host with {target}",
        )


def _geometry(contract: Contract) -> str:
    """The name of a contract's geometry for the toolchain, its own name where there is none."""
    for name in GEOMETRIES:
        sizes, g = sizes_named(name), contract.model.geometry
        known = (sizes.layers, sizes.hidden, sizes.intermediate, sizes.query_heads, sizes.kv_heads)
        if known == (g.layers, g.hidden, g.intermediate, g.query_heads, g.kv_heads):
            return name if contract.encoding == "bf16" else f"{name}+{contract.encoding}"
    return contract.id


def _uncompiled(record: Mapping[str, Any], target: str, root: Path) -> str | None:
    if not record:
        return "no kept portability record of this geometry"
    tuning = f"kernels/tuning/{target}.json"  # another chip's tiles are none of this one's
    sources = {p: sha for p, sha in record["sources"].items() if p == tuning or "/tuning/" not in p}
    changed = [path for path, sha in sources.items() if _sha256(root / path) != sha]
    if changed:
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        return f"{', '.join(changed[:NAMED])}{more} changed since {record['path']}"
    cells = {kernel: cells.get(target) for kernel, cells in record["cells"].items()}
    if not any(cells.values()):
        return f"{record['path']} leaves this chip out"
    unwell = Counter(cell["status"] if cell else "left out" for cell in cells.values())
    del unwell["ok"]
    if not unwell:
        return None
    counts = ", ".join(f"{n} {status}" for status, n in sorted(unwell.items()))
    bad = [name for name, cell in cells.items() if not cell or cell["status"] != "ok"]
    return f"{counts} of {len(cells)} kernels ({', '.join(bad)}), {record['path']}"


def _sha256(path: Path) -> str | None:
    return sha256_of(path.read_bytes()) if path.is_file() else None


def _functions(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_bytes(), str(path))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
