"""Compile the appliance's kernels ahead of a proof: `<out>/<sizes>/<kernel>.cubin` and `<out>/index.json`.

It runs where the compiler is; the folder then goes to a machine with a GPU, which needs none.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernels import aot
from kernels.build import BuiltKernel, build_all
from lean.errors import GateError, UsageError
from lean.toolchain.shapes import specs_of
from lean.toolchain.sources import hashed_sources
from lean.toolchain.tools import find_tools, supported_targets

SCHEMA = "kernel-build/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to compile. `skip`: patterns of sizes/kernel to leave out; `workers`: cores to use."""

    out: Path
    target: str
    sizes: tuple[str, ...]
    skip: tuple[str, ...] = ()
    workers: int = 2


def build(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Compile every kernel and write the folder. Returns its index.

    Errors: `UsageError` for unknown sizes, an unknown target or a folder with something in it; `GateError`
    naming the kernel that does not compile; `PreflightError` for a missing tool.
    """
    tools = find_tools()
    if options.target not in supported_targets(tools):
        raise UsageError(f"--target: tileiras does not know {options.target}")
    if options.out.exists() and any(options.out.iterdir()):
        raise UsageError(f"--out: {options.out} is not empty; a build starts with an empty folder")
    entries = [
        _write(options.out, sizes, kernel)
        for sizes in options.sizes
        for kernel in _compiled(tools, sizes, options, say)
    ]
    index = {
        "schema": SCHEMA,
        "target": options.target,
        "tools": {tools.tileiras.package: tools.tileiras.version, tools.ptxas.package: tools.ptxas.version},
        "sources": hashed_sources(options.target),
        "kernels": entries,
    }
    (options.out / "index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    return index


def _compiled(
    tools: aot.Tools, sizes: str, options: Options, say: Callable[[str], None]
) -> tuple[BuiltKernel, ...]:
    specs = [
        spec
        for spec in specs_of(sizes, options.target)
        if not any(fnmatch.fnmatch(f"{sizes}/{spec.name}", pattern) for pattern in options.skip)
    ]
    try:
        built: tuple[BuiltKernel, ...] = build_all(
            tools, specs, options.target, lambda line: say(f"{sizes} {line}"), workers=options.workers
        )
    except aot.AotError as error:
        raise GateError(f"{sizes}: {error}") from None
    return built


def _write(out: Path, sizes: str, kernel: BuiltKernel) -> dict[str, Any]:
    """Write the binary; its entry of the index."""
    path = out / sizes / f"{kernel.spec.name}.cubin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(kernel.cubin)
    return {
        "sizes": sizes,
        "kernel": kernel.spec.name,
        "file": path.relative_to(out).as_posix(),
        "sha256": hashlib.sha256(kernel.cubin).hexdigest(),
        "resources": asdict(kernel.resources),
    }
