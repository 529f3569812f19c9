"""The toolchain proof on a host, its artefacts brought home."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lean.errors import from_document
from remote.site import Site


def verify(site: Site, targets: str, *, artifacts: Path) -> dict[str, Any]:
    """Take the vector add through bytecode, TileIR, cubin and SASS for `targets`, and run it on a GPU.

    Every stage is a file in a folder that is pulled below `artifacts`, of a failed proof too. Errors:
    `PreflightError` for a missing tool, `GateError` for a stage that failed, each with cause and fix.
    """
    out = f"{site.paths.root}/artifacts"
    arguments = ("--out", out, "--target", targets, "--gpu", site.host.gpu)
    document = site.outcome("verify", "lean.toolchain", "verify", *arguments)
    target = artifacts / document["run"]
    site.pull(f"{out}/{document['run']}", target)
    if "error" in document:
        raise from_document(document)
    document["artifacts"] = str(target)
    return document
