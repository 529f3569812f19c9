"""The verb `tune` of `python -m lean.toolchain`: its arguments, and what it runs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from lean.errors import UsageError
from lean.toolchain.arguments import count, missing_package_named, names, seconds, seed
from lean.toolchain.speed.commands import Say


def add_tune(verbs: Any, say: Say) -> None:
    """`tune`: the search for tiles."""
    verb = verbs.add_parser("tune", help="search for the tiles that this machine's GPU is fastest with")
    verb.add_argument("--contract", required=True, help="name of a contract in profiles/contracts")
    verb.add_argument("--out", type=Path, required=True, help="folder of runs, journal and candidates")
    verb.add_argument("--kernels", type=Path, help="candidates that another machine compiled")
    verb.add_argument("--encoding", help="of the weights, in the place of the contract's own")
    verb.add_argument("--only", default="", help="patterns of kernels, comma-separated, such as 'qkv.*'")
    verb.add_argument("--seed", type=seed, default=20260725, help="of all random inputs")
    verb.add_argument("--limit-s", type=seconds, default=30.0, help="seconds that one candidate may take")
    verb.add_argument(
        "--compile-only",
        action="store_true",
        help="compile candidates into --out, for --kernels on a machine without a compiler",
    )
    verb.add_argument("--target", help="with --compile-only: the chip; the contract's own by default")
    verb.add_argument("--workers", type=count, default=os.cpu_count() or 1, help="compiles at a time")
    verb.set_defaults(run=lambda options: _tune(options, say))


def _tune(options: argparse.Namespace, say: Say) -> dict[str, Any]:
    if options.compile_only and options.kernels:
        raise UsageError("--compile-only, --kernels: candidates are made, or read, not both")
    if options.target and not options.compile_only:
        raise UsageError("--target: the search is for the GPU that is here; --compile-only takes a target")
    with missing_package_named():
        from lean.toolchain.speed.contract_shapes import encoded_name, read_shapes
        from lean.toolchain.tune import compile as tune_compile
        from lean.toolchain.tune import run as tune
        from lean.toolchain.tune.plan import make_plan, read_tuning

        if options.kernels:
            name = encoded_name(options.contract, options.encoding)
            shapes = tune_compile.folder_contract(options.kernels, name)
        else:
            shapes = read_shapes(options.contract, options.encoding)
    only = names(options.only)
    if options.compile_only:
        target = options.target or shapes.target
        plan = make_plan(shapes, target, only, read_tuning(target))
        built = tune_compile.compile_plan(plan, shapes, options.out, say, workers=options.workers)
        mine = [built[candidate.digest]["status"] for candidate in plan.all()]
        return {
            "path": str(options.out),
            "target": target,
            **{status: mine.count(status) for status in ("compiled", "refused", "lost")},
        }
    gpu = tune.find_gpu()
    wanted = tune.Options(
        out=options.out,
        only=only,
        kernels=options.kernels,
        workers=options.workers,
        seconds=options.limit_s,
        seed=options.seed,
    )
    with missing_package_named():
        return tune.tune(wanted, shapes, gpu, say)
