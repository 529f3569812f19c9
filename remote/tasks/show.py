"""Read-only views of contracts, profiles, the resident plan and the portability matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from invoke import Collection

from remote.console import Console
from remote.tasks.appliance import plan_table
from remote.tasks.verb import verb, whole_number


@verb(contract="a contract of profiles/contracts; the default host's when left out")
def contract(console: Console, contract: str | None = None) -> None:
    """Show one model-chip pair: geometry, encoding, target, buckets, and the kernels that follow."""
    from lean.contracts import contract_sha256, kernels_required, load_contract, to_data
    from remote.host.hosts import default_contract

    found = load_contract(contract or default_contract())
    needs = kernels_required(found.model.geometry)
    document = to_data(found) | {"sha256": contract_sha256(found), "kernels": [to_data(n) for n in needs]}

    def show() -> None:
        console.pairs({k: v for k, v in document.items() if k != "kernels"})
        rows = [(n.op, " × ".join(map(str, n.shape)) or "-", n.per_step) for n in needs]
        console.table(("kernel", "weights [N × K]", "launches a step"), rows)

    console.result(document, show)


@verb(profile="a profile of profiles/bench; all of them when left out")
def profile(console: Console, profile: str | None = None) -> None:
    """Show the bench profiles: how many tokens in, how many out, how many streams, how often."""
    from lean.contracts import load_profile, to_data
    from lean.contracts.catalog import ROOT, names

    wanted = [profile] if profile else names(ROOT / "profiles" / "bench")
    profiles = [load_profile(one) for one in wanted]
    rows = [
        (p.id, p.prompt_tokens, p.decode_tokens, p.batch, p.warmup_requests, p.requests) for p in profiles
    ]
    columns = ("profile", "prompt", "decode", "batch", "warm-up", "requests")
    console.result({"profiles": [to_data(p) for p in profiles]}, lambda: console.table(columns, rows))


@verb(
    contract="a contract of profiles/contracts; the default host's when left out",
    slots="streams at once: 1, 2, 4 or 8",
    runner="torch or cuda; the one for the contract's target when left out",
)
def plan(console: Console, contract: str | None = None, slots: int = 1, runner: str | None = None) -> None:
    """Show the resident layout a contract needs: weights, key-value cache and scratch, in bytes.

    For a GPU's contract also what its decode speed might be, projected from the newest measured run.
    """
    from lean.contracts import load_contract
    from remote.host.hosts import default_contract
    from remote.host.python import local_program
    from remote.paths import REPOSITORY

    chosen = contract or default_contract()
    backend = runner or ("torch" if load_contract(chosen).target == "cpu" else "cuda")
    options = ("--contract", chosen, "--slots", str(slots), "--runner", backend)
    results = ("--results", str(REPOSITORY / "results"))
    document = local_program("lean.leanserve", "plan", *options, *results)
    console.result(document, plan_table(console, document))


@verb(
    sizes="a geometry: tiny, 0.6b, 1.7b or 4b",
    target="chips, comma-separated, or all of them",
    workers="compiles at a time; one to a core when left out",
    cold="compile all of it, whatever is in the cache",
)
def portability(
    console: Console, sizes: str = "4b", target: str = "all", workers: int | None = None, cold: bool = False
) -> None:
    """Compile a geometry's kernels, from unchanged source, for every chip: what fits, what does not, and why.

    It runs on this machine and needs no GPU. What was compiled before comes from `.lean/portability`.
    """
    from remote.host.python import local_program
    from remote.paths import STATE

    count = whole_number("--workers", workers)
    options = ["--sizes", sizes, "--target", target]
    options += ["--workers", str(count)] if count is not None else []
    options += [] if cold else ["--cache", str(STATE / "portability")]
    document = local_program("lean.toolchain", "portability", *options)
    console.result(document, portability_table(console, document))


def portability_table(console: Console, document: Mapping[str, Any]) -> Callable[[], None]:
    """How a portability matrix is shown: one row per chip, the cells that are not ok, and the figure."""

    def show() -> None:
        console.table(CHIP_COLUMNS, [chip_row(chip) for chip in document["targets"]])
        wrong = [
            (row["kernel"], target, cell["status"], cell["why"].splitlines()[0])
            for row in document["kernels"]
            for target, cell in row["cells"].items()
            if cell["status"] != "ok"
        ]
        if wrong:
            console.table(("kernel", "target", "", "why"), wrong)
        figure = document["figure"]
        console.line(
            f"{figure['files_that_compile_everywhere']} of {figure['files']} unchanged sources compile for all "
            f"{figure['chips']} chips, {figure['files_that_fit_everywhere']} also fit all of them; "
            f"{document['compiled']} kernels compiled, {document['from_cache']} from the cache, "
            f"{document['seconds']:.0f} s"
        )

    return show


CHIP_COLUMNS = (
    *("target", "tiles", "ok", "does not fit", "refused", "lost", "most registers", "that spill"),
    *("most shared memory", "of", "matrix", "loads", "widest load"),
)


def chip_row(chip: Mapping[str, Any]) -> tuple[object, ...]:
    """One chip of the matrix."""
    counts = (chip[status] for status in ("ok", "does-not-fit", "refused", "lost"))
    used = (chip[name] for name in ("most_registers", "spilling", "most_shared_bytes", "shared_limit"))
    kinds = (", ".join(chip[name]) for name in ("matrix", "loads"))
    return (chip["target"], chip["tiles"], *counts, *used, *kinds, chip["widest_load"])


namespace = Collection("show", contract, profile, plan, portability)
