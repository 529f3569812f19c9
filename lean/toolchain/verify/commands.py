"""The verb `verify` of `python -m lean.toolchain`: arguments, and what they run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from lean.toolchain.arguments import missing_package_named, names, say


def add_verify(verbs: Any) -> None:
    """`verify`."""
    verb = verbs.add_parser(
        "verify", help="vector add through bytecode, TileIR, cubin and SASS, and on the GPU"
    )
    verb.add_argument(
        "--out", type=Path, required=True, help="directory that gets one <UTC> directory per run"
    )
    verb.add_argument("--target", default="sm_121,sm_90", help="chips to compile for, comma-separated")
    verb.add_argument(
        "--gpu", choices=("auto", "none"), default="auto", help="run on the first GPU, or leave it out"
    )
    verb.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    with missing_package_named():
        from lean.toolchain.verify.run import Options, verify
    return verify(Options(out=options.out, targets=names(options.target), gpu=options.gpu), os.environ, say)
