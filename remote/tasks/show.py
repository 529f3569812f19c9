"""Read-only views of contracts, profiles, the resident plan, the portability matrix and the gaps."""

from __future__ import annotations

from invoke import Collection

from remote.console import Console
from remote.tasks.appliance import plan_table
from remote.tasks.toolchain import portability
from remote.tasks.verb import verb


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
    encoding="of the weights: bf16, fp8-e4m3, int4-codebook or nvfp4; the contract's when left out",
)
def plan(
    console: Console,
    contract: str | None = None,
    slots: int = 1,
    runner: str | None = None,
    encoding: str | None = None,
) -> None:
    """Show the resident layout a contract needs: weights, key-value cache and scratch, in bytes.

    For a GPU's contract also what its decode speed might be, projected from the newest measured run.
    """
    from lean.contracts import load_contract
    from remote.host.hosts import default_contract
    from remote.host.python import local_program
    from remote.paths import REPOSITORY

    chosen = contract or default_contract()
    backend = runner or ("torch" if load_contract(chosen).target == "cpu" else "cuda")
    options: tuple[str, ...] = ("--contract", chosen, "--slots", str(slots), "--runner", backend)
    options += ("--results", str(REPOSITORY / "results"))
    options += ("--encoding", encoding) if encoding else ()
    document = local_program("lean.leanserve", "plan", *options)
    console.result(document, plan_table(console, document))


@verb()
def gaps(console: Console) -> None:
    """Show what is not there yet, computed from the tree: kernels, compiled chips, runs, proofs, tiles."""
    from remote.host.python import local_program
    from remote.paths import REPOSITORY, STATE

    options = ("--root", str(REPOSITORY), "--index", str(STATE / "results"))
    document = local_program("lean.gaps", *options)
    rows = [[gap[name] for name in ("kind", "about", "problem", "fix")] for gap in document["gaps"]]

    def show() -> None:
        console.table(("gap", "about", "what is missing", "what closes it"), rows)
        console.line(", ".join(f"{kind} {count}" for kind, count in document["counts"].items()))

    console.result(document, show)


namespace = Collection("show", contract, profile, plan, portability, gaps)
