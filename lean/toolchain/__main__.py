"""`python -m lean.toolchain verify | record`: one JSON document on standard output."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from lean.cli import ProgramParser, run_program
from lean.errors import PreflightError
from lean.toolchain.surroundings import check_kernels_package

ROOT = Path(__file__).resolve().parents[2]


def _parser() -> ProgramParser:
    parser = ProgramParser(prog="python -m lean.toolchain", description="Prove the toolchain, keep a proof.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verify = verbs.add_parser(
        "verify", help="vector add through bytecode, TileIR, cubin and SASS, and on the GPU"
    )
    verify.add_argument(
        "--out", type=Path, required=True, help="directory that gets one <UTC> directory per run"
    )
    verify.add_argument("--target", default="sm_121,sm_90", help="chips to compile for, comma-separated")
    verify.add_argument(
        "--gpu", choices=("auto", "none"), default="auto", help="run on the first GPU, or leave it out"
    )
    record = verbs.add_parser("record", help="keep a passed GPU proof under results/v1")
    record.add_argument(
        "--probe", type=Path, required=True, help="the probe.json of a run that passed on a GPU"
    )
    record.add_argument("--host", required=True, help="name of the host it ran on, as in hosts.yaml")
    record.add_argument(
        "--root", type=Path, default=Path.cwd(), help="the git checkout that keeps the record"
    )
    for verb, run in ((verify, _verify), (record, _record)):
        verb.set_defaults(run=run)
    return parser


def _record(options: argparse.Namespace) -> dict[str, Any]:
    from lean.toolchain.proof import write_record

    return write_record(options.probe, host=options.host, root=options.root)


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    check_kernels_package(ROOT)
    try:
        from lean.toolchain.verify import Options, verify
    except ModuleNotFoundError as error:
        raise PreflightError(
            f"the Python package {error.name} is missing; pip install 'leanstack[host]' into the Python that "
            "runs this"
        ) from None
    targets = tuple(dict.fromkeys(name.strip() for name in options.target.split(",") if name.strip()))
    return verify(Options(out=options.out, targets=targets, gpu=options.gpu), os.environ, _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str]) -> dict[str, Any]:
    """Run one verb; the result is what `run_program` prints."""
    options = _parser().parse_args(argv)
    return dict(options.run(options))


if __name__ == "__main__":
    sys.exit(run_program(main))
