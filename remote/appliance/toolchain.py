"""The toolchain proof and the precision gate on a host, their artefacts brought home."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lean.errors import from_document
from remote.host.site import Site
from remote.paths import STATE
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

    Every stage's file is pulled below `.lean/artifacts`, the record alone below `results`. `kernels`: a folder
    on the host that a gate elsewhere compiled. Errors: those of `lean.toolchain gate`; `GateError` when a
    chip is left with no precision to start from, the record kept all the same.
    """
    out = f"{site.paths.artifacts}/gate"
    arguments = ["--out", out, "--gpu", site.host.gpu]
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
    record = results / "v1" / site.name / "gate" / run / "gate.json"
    site.pull(f"{out}/{run}", artifacts)
    site.pull(f"{out}/{run}/gate.json", record)
    document |= {"artifacts": str(artifacts), "record": str(record)}
    return document
