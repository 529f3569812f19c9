"""The verb `kernels` of `python -m lean.toolchain`: its arguments, and what it runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lean.errors import UsageError
from lean.toolchain.arguments import count, missing_package_named, names, seed, whole_numbers

Say = Callable[[str], None]


def add_kernels(verbs: Any, say: Say) -> None:
    """`kernels`: the hot-kernel bench."""
    verb = verbs.add_parser("kernels", help="time a contract's hot kernels beside torch")
    verb.add_argument("--contract", required=True, help="name of a contract in profiles/contracts")
    verb.add_argument("--out", type=Path, required=True, help="folder that gets one <UTC> folder a run")
    verb.add_argument("--kernels", type=Path, help="a folder that another machine compiled")
    verb.add_argument("--encoding", help="of the weights, in the place of the contract's own")
    verb.add_argument("--only", default="", help="of these operations only, comma-separated")
    verb.add_argument("--rows", default="", help="of these numbers of rows only, comma-separated")
    verb.add_argument("--seed", type=seed, default=20260725, help="of all random inputs")
    verb.add_argument("--samples", type=count, default=11, help="samples of each operation")
    verb.add_argument("--no-torch", action="store_true", help="leave torch and the matrix rate out")
    verb.add_argument(
        "--compile-only",
        action="store_true",
        help="compile into --out, a new folder, for --kernels on a machine without a compiler",
    )
    verb.add_argument("--target", help="with --compile-only: the chip; the contract's own by default")
    verb.add_argument("--workers", type=count, default=os.cpu_count() or 1, help="compiles at a time")
    verb.set_defaults(run=lambda options: _kernels(options, say))


def _kernels(options: argparse.Namespace, say: Say) -> dict[str, Any]:
    if options.compile_only and options.kernels:
        raise UsageError("--compile-only, --kernels: a folder is made, or read, not both")
    if options.target and not options.compile_only:
        raise UsageError("--target: what runs is for the GPU that is here; --compile-only takes a target")
    with missing_package_named():
        from lean.toolchain.speed import binaries
        from lean.toolchain.speed.contract_shapes import encoded_name, read_shapes

        name = encoded_name(options.contract, options.encoding)
        shapes = binaries.folder_shapes(options.kernels, name) if options.kernels else None
        shapes = shapes or read_shapes(options.contract, options.encoding)
    if options.compile_only:
        target = options.target or shapes.target
        specs = binaries.specs_for(shapes, target)
        built = binaries.compile_here(specs, target, say, workers=options.workers)
        binaries.write_folder(options.out, shapes, target, built)
        return {"path": str(options.out), "target": target, "kernels": len(built.kernels)}
    with missing_package_named():
        from lean.toolchain.chip.machine import open_gpu
        from lean.toolchain.chip.pace import Pace
        from lean.toolchain.speed.bench import Options, chosen, kernel_bench
        from lean.toolchain.speed.operations import operations

        machine = open_gpu()
    wanted = Options(
        out=options.out,
        only=names(options.only),
        rows=whole_numbers("--rows", options.rows),
        seed=options.seed,
        pace=Pace(samples=options.samples),
        torch=not options.no_torch,
    )
    target = str(machine.facts["sm"])
    if options.kernels:
        built = binaries.read_folder(options.kernels, shapes, target)
    else:
        specs = binaries.specs_for(shapes, target)
        chosen(operations(shapes.sizes, specs, shapes.position)[0], wanted)  # before minutes of compiling
        built = binaries.compile_here(specs, target, say, workers=options.workers)
    return kernel_bench(wanted, shapes, built, machine, say)
