"""The verb `gate` of `python -m lean.toolchain`: arguments, and what they run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lean.toolchain.arguments import add_workers, missing_package_named, names, say, seconds


def add_gate(verbs: Any) -> None:
    """`gate`."""
    verb = verbs.add_parser("gate", help="what compiler and chip make of each precision, by each route")
    verb.add_argument("--out", type=Path, required=True, help="folder that gets one <UTC> folder a run")
    verb.add_argument("--target", default="", help="chips; sm_121, sm_90 and this machine's by default")
    verb.add_argument("--precision", default="", help="of these only, comma-separated")
    verb.add_argument("--route", default="", help="of these only, comma-separated")
    verb.add_argument("--gpu", choices=("auto", "none"), default="auto", help="run on the first GPU, or not")
    verb.add_argument("--kernels", type=Path, help="a gate's folder from a machine with the compiler")
    verb.add_argument(
        "--previous", type=Path, help="gate.json to compare with; the newest in --out by default"
    )
    add_workers(verb)
    verb.add_argument("--limit-s", type=seconds, default=60.0, help="seconds that one probe may take")
    verb.set_defaults(run=_gate)


def _gate(options: argparse.Namespace) -> dict[str, Any]:
    with missing_package_named():
        from lean.toolchain.gate.run import Options, gate
    wanted = Options(
        out=options.out,
        targets=names(options.target),
        precisions=names(options.precision),
        routes=names(options.route),
        gpu=options.gpu,
        kernels=options.kernels,
        previous=options.previous,
        workers=options.workers,
        seconds=options.limit_s,
    )
    return gate(wanted, say)
