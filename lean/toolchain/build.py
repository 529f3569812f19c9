"""Compile the appliance's kernels ahead of a proof: `<out>/<sizes>/<kernel>.cubin` and `<out>/index.json`.

It runs where the compiler is; the folder then goes to a machine with a GPU, which needs none.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernels import aot
from kernels.sass import SassFacts, read_sass
from kernels.signature import signature, tile_kernel
from kernels.spec import KernelSpec
from lean.errors import GateError, UsageError
from lean.toolchain.chain import find_tools, supported_targets
from lean.toolchain.shapes import specs_of
from lean.toolchain.sources import hashed_sources

SCHEMA = "kernel-build/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """One kernel's binary and what it occupies."""

    sizes: str
    kernel: str
    cubin: bytes
    facts: SassFacts
    resources: aot.Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to compile. `skip`: patterns of sizes/kernel to leave out; `workers`: processes at once."""

    out: Path
    target: str
    sizes: tuple[str, ...]
    skip: tuple[str, ...] = ()
    workers: int = 2


def build_kernel(sizes: str, spec: KernelSpec, target: str) -> Built:
    """Compile one kernel. Errors: `GateError` naming it."""
    try:
        return _built(sizes, spec, target)
    except aot.AotError as error:  # it would not survive the way back from another process
        raise GateError(f"{sizes} {spec.name} for {target}: {error}") from None


def _built(sizes: str, spec: KernelSpec, target: str) -> Built:
    tools = aot.find_tools()
    bytecode = aot.compile_bytecode(tile_kernel(spec), signature(spec), target)
    cubin = aot.compile_cubin(tools, bytecode, target)
    facts = read_sass(aot.disassemble_cubin(tools, cubin))
    resources = aot.resource_usage(tools, cubin, spec.symbol, facts)
    return Built(sizes=sizes, kernel=spec.name, cubin=cubin, facts=facts, resources=resources)


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
    jobs = [
        (sizes, spec)
        for sizes in options.sizes
        for spec in specs_of(sizes, options.target)
        if not any(fnmatch.fnmatch(f"{sizes}/{spec.name}", pattern) for pattern in options.skip)
    ]
    entries = []
    for built in build_all(jobs, options.target, options.workers):
        path = options.out / built.sizes / f"{built.kernel}.cubin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(built.cubin)
        used = built.resources
        entries.append(
            {
                "sizes": built.sizes,
                "kernel": built.kernel,
                "file": path.relative_to(options.out).as_posix(),
                "sha256": hashlib.sha256(built.cubin).hexdigest(),
                "resources": asdict(used),
            }
        )
        say(f"{built.sizes} {built.kernel}: {used.registers} registers, {used.shared_bytes} bytes shared")
    index = {
        "schema": SCHEMA,
        "target": options.target,
        "tools": {tools.tileiras.package: tools.tileiras.version, tools.ptxas.package: tools.ptxas.version},
        "sources": hashed_sources(options.target),
        "kernels": entries,
    }
    (options.out / "index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    return index


def build_all(jobs: Sequence[tuple[str, KernelSpec]], target: str, workers: int) -> Iterator[Built]:
    """Compile kernels in several processes. Errors: `GateError` naming the kernel."""
    with ProcessPoolExecutor(workers) as pool:
        waiting = [pool.submit(build_kernel, sizes, spec, target) for sizes, spec in jobs]
        try:
            for future in waiting:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
