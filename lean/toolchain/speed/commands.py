"""The verb `kernels` of `python -m lean.toolchain`: its arguments, and what it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lean.toolchain.arguments import count, missing_package_named, names, say, whole_numbers
from lean.toolchain.speed.arguments import add_contract, contract_asked


def add_kernels(verbs: Any) -> None:
    """`kernels`: the hot-kernel bench."""
    verb = verbs.add_parser("kernels", help="time a contract's hot kernels beside torch")
    add_contract(verb)
    verb.add_argument("--out", type=Path, required=True, help="folder that gets one <UTC> folder a run")
    verb.add_argument("--only", default="", help="of these operations only, comma-separated")
    verb.add_argument("--rows", default="", help="of these numbers of rows only, comma-separated")
    verb.add_argument("--samples", type=count, default=11, help="samples of each operation")
    verb.add_argument("--no-torch", action="store_true", help="leave torch and the matrix rate out")
    verb.set_defaults(run=_kernels)


def _kernels(options: argparse.Namespace) -> dict[str, Any]:
    with missing_package_named():
        from lean.toolchain.speed import binaries

    shapes = contract_asked(options, binaries.folder_shapes)
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
