"""`python -m lean.toolchain <verb>`: one JSON document on standard output."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lean.cli import ProgramParser, end_in_order, run_program
from lean.toolchain.gate.commands import add_gate
from lean.toolchain.portability.commands import add_portability
from lean.toolchain.proof.commands import add_build, add_prove
from lean.toolchain.speed.commands import add_kernels
from lean.toolchain.surroundings import check_kernels_package
from lean.toolchain.tune.commands import add_tune
from lean.toolchain.verify.commands import add_verify

VERBS = (add_verify, add_build, add_prove, add_gate, add_portability, add_kernels, add_tune)


def _parser() -> ProgramParser:
    parser = ProgramParser(
        prog="python -m lean.toolchain", description="Prove and ask the toolchain, keep what came out."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for add in (*VERBS, _add_record):
        add(verbs)
    return parser


def _add_record(verbs: Any) -> None:
    verb = verbs.add_parser("record", help="keep what came out under results/v1")
    verb.add_argument(
        "--probe",
        type=Path,
        required=True,
        help="a probe.json that passed on a GPU; or gate.json, portability.json, kernels.json, tune.json",
    )
    verb.add_argument("--host", required=True, help="name of the host it ran on, as in hosts.yaml")
    verb.add_argument("--root", type=Path, default=Path.cwd(), help="the git checkout that keeps the record")
    verb.set_defaults(run=_record)


def _record(options: argparse.Namespace) -> dict[str, Any]:
    from lean.toolchain.proof.record import write_record
    from lean.toolchain.records import keep, kept_kind

    if kept_kind(options.probe) is not None:
        return keep(options.probe, host=options.host, root=options.root)
    return write_record(options.probe, host=options.host, root=options.root)


def main(argv: list[str]) -> dict[str, Any]:
    """Run one verb; the result is what `run_program` prints."""
    options = _parser().parse_args(argv)
    check_kernels_package()
    return dict(options.run(options))


def program() -> int:
    """The process: a stopped job ends as an interrupted one does, so that its workers end too."""
    end_in_order()
    return run_program(main)


if __name__ == "__main__":
    sys.exit(program())
