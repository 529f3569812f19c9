"""The verb `tune` of `python -m lean.toolchain`: its arguments, and what it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lean.toolchain.arguments import missing_package_named, names, say, seconds
from lean.toolchain.speed.arguments import add_contract, contract_asked


def add_tune(verbs: Any) -> None:
    """`tune`: the search for tiles."""
    verb = verbs.add_parser("tune", help="search for the tiles that this machine's GPU is fastest with")
    add_contract(verb)
    verb.add_argument("--out", type=Path, required=True, help="folder of runs, journal and candidates")
    verb.add_argument("--only", default="", help="patterns of kernels, comma-separated, such as 'qkv.*'")
    verb.add_argument("--limit-s", type=seconds, default=30.0, help="seconds that one candidate may take")
    verb.set_defaults(run=_tune)


def _tune(options: argparse.Namespace) -> dict[str, Any]:
    with missing_package_named():
        from lean.toolchain.chip.find import needed_gpu
        from lean.toolchain.tune import compile as tune_compile
        from lean.toolchain.tune.plan import make_plan, read_tuning
        from lean.toolchain.tune.run import Options, tune

    shapes = contract_asked(options, tune_compile.folder_contract)
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
    gpu = needed_gpu("to tune for", "--compile-only needs none")
    wanted = Options(
        out=options.out,
        only=only,
        kernels=options.kernels,
        workers=options.workers,
        seconds=options.limit_s,
        seed=options.seed,
    )
    with missing_package_named():
        return tune(wanted, shapes, gpu, say)
