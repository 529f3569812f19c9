"""The toolchain proof on a host, its artefacts brought home."""

from __future__ import annotations

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
