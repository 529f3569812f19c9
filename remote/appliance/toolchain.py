"""The toolchain's verbs on a host: proof, gate, hot kernels, search for tiles; artefacts come home."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lean.errors import PreflightError, from_document
from remote.appliance.alone import KERNELS_JOB, TUNE_JOB, check_alone
from remote.appliance.gate_records import newest_record
from remote.host.python import local_program
from remote.host.site import Site
from remote.paths import REPOSITORY, STATE
from remote.ssh.command import plain_name


def verify(site: Site, targets: str | None = None) -> dict[str, Any]:
    """Take the vector add through bytecode, TileIR, cubin and SASS for `targets`, and run it on a GPU.

    Every stage is a file in a folder that is pulled below `.lean/artifacts`, of a failed proof too. Errors:
    `PreflightError` for a missing tool, `GateError` for a stage that failed, each with cause and fix.
    """
    out = site.paths.artifacts
    arguments = ["--out", out, "--gpu", site.host.gpu]
    arguments += ["--target", targets] if targets else []
    document = site.outcome("verify", "lean.toolchain", "verify", *arguments)
    target = STATE / "artifacts" / site.name / plain_name("run", str(document["run"]))
    site.pull(f"{out}/{document['run']}", target)
    if "error" in document:
        raise from_document(document)
    document["artifacts"] = str(target)
    return document


def gate(
    site: Site,
    *,
    results: Path,
    targets: str | None = None,
    precisions: str | None = None,
    routes: str | None = None,
    kernels: str | None = None,
) -> dict[str, Any]:
    """Ask what compiler and chip make of each precision, by each authoring route.

    Every stage's file is pulled below `.lean/artifacts`. The newest record that `results` has of the host is
    sent there, to be compared with. `kernels`: a folder on the host that a gate elsewhere compiled. A
    document with an `error` has a chip with no precision to start from. Errors: those of `lean.toolchain
    gate`.
    """
    out = f"{site.paths.artifacts}/gate"
    arguments = ["--out", out, "--gpu", site.host.gpu]
    before = newest_record(results, site.name)
    if before is not None:
        there = f"{site.paths.tmp}/gate-before.json"
        site.push(before, there)
        arguments += ["--previous", there]
    for flag, value in (
        ("--target", targets),
        ("--precision", precisions),
        ("--route", routes),
        ("--kernels", kernels),
    ):
        arguments += [flag, value] if value else []
    document = site.outcome("gate", "lean.toolchain", "gate", *arguments)
    run = plain_name("run", str(document["run"]))
    artifacts = STATE / "artifacts" / site.name / "gate" / run
    site.pull(f"{out}/{run}", artifacts)
    document["artifacts"] = str(artifacts)
    return document


def kernels(
    site: Site,
    *,
    contract: str | None = None,
    only: str | None = None,
    rows: str | None = None,
    seed: int | None = None,
    folder: str | None = None,
    encoding: str | None = None,
) -> dict[str, Any]:
    """Time the hot kernels of a contract, or of the host's own, on the host's GPU.

    Every stage's file is pulled below `.lean/artifacts`, beside the document. `folder`: kernels on the host
    that another machine compiled. A document with an `error` has a kernel that is wrong. Errors:
    `PreflightError` for a host without a GPU or one that serves or measures, and those of `lean.toolchain
    kernels`.
    """
    _needs_gpu(site)
    check_alone(site, KERNELS_JOB)
    out = f"{site.paths.artifacts}/kernels"
    arguments = ["--contract", contract or site.host.contract, "--out", out]
    for flag, value in (
        ("--only", only),
        ("--rows", rows),
        ("--seed", seed),
        ("--kernels", folder),
        ("--encoding", encoding),
    ):
        arguments += [flag, str(value)] if value is not None else []
    document = site.outcome(KERNELS_JOB, "lean.toolchain", "kernels", *arguments)
    run = plain_name("run", str(document["run"]))
    artifacts = STATE / "artifacts" / site.name / "kernels" / run
    site.pull(f"{out}/{run}", artifacts)
    document["artifacts"] = str(artifacts)
    return document


def tune(
    site: Site,
    *,
    contract: str | None = None,
    only: str | None = None,
    folder: str | None = None,
    encoding: str | None = None,
) -> dict[str, Any]:
    """Search for tiles on the host's GPU; a search that was stopped goes on where it was.

    `only`: patterns of kernels. `folder`: candidates on the host that another machine compiled. A document
    with an `error` has a kernel with no candidate that passed. Errors: `PreflightError` for a host without a
    GPU or one that serves or measures, and those of `lean.toolchain tune`.
    """
    _needs_gpu(site)
    check_alone(site, TUNE_JOB)
    out = f"{site.paths.artifacts}/tune"
    arguments = ["--contract", contract or site.host.contract, "--out", out]
    for flag, value in (("--only", only), ("--kernels", folder), ("--encoding", encoding)):
        arguments += [flag, value] if value is not None else []
    document = site.outcome(TUNE_JOB, "lean.toolchain", "tune", *arguments)
    run = plain_name("run", str(document["run"]))
    artifacts = STATE / "artifacts" / site.name / "tune" / run
    site.pull(f"{out}/{run}", artifacts)
    document["artifacts"] = str(artifacts)
    return document


def _needs_gpu(site: Site) -> None:
    if site.host.gpu == "none":
        raise PreflightError(
            f"{site.name}: the hosts file says `gpu: none`, and kernels are timed on a GPU; say `gpu: auto`, "
            "or name another --host"
        )


def keep(document: str, host: str) -> str:
    """Keep a document of a toolchain verb in this checkout, as one of `host`.

    Returns the record's path. Errors: those of `lean.toolchain record`.
    """
    arguments = ("--probe", document, "--host", host, "--root", str(REPOSITORY))
    kept = local_program("lean.toolchain", "record", *arguments)
    return str(REPOSITORY / kept["record"])
