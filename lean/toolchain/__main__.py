"""`python -m lean.toolchain <verb>`: one JSON document on standard output."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from lean.cli import ProgramParser, run_program
from lean.toolchain.arguments import count, missing_package_named, names, seconds
from lean.toolchain.speed.commands import add_kernels
from lean.toolchain.surroundings import check_kernels_package
from lean.toolchain.tune.commands import add_tune

ROOT = Path(__file__).resolve().parents[2]
SIZES = "tiny,tiny+fp8-e4m3,tiny+int4-codebook,tiny+nvfp4,0.6b,1.7b,4b"


def _parser() -> ProgramParser:
    parser = ProgramParser(
        prog="python -m lean.toolchain", description="Prove and ask the toolchain, keep what came out."
    )
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
    record = verbs.add_parser("record", help="keep what came out under results/v1")
    record.add_argument(
        "--probe",
        type=Path,
        required=True,
        help="a probe.json that passed on a GPU; or gate.json, portability.json, kernels.json, tune.json",
    )
    record.add_argument("--host", required=True, help="name of the host it ran on, as in hosts.yaml")
    record.add_argument(
        "--root", type=Path, default=Path.cwd(), help="the git checkout that keeps the record"
    )
    build = verbs.add_parser("build", help="compile the appliance's kernels for a machine without a compiler")
    build.add_argument("--out", type=Path, required=True, help="empty folder that gets the binaries")
    build.add_argument("--target", required=True, help="the chip to compile for, such as sm_90")
    build.add_argument("--sizes", default=SIZES, help="geometries, comma-separated")
    build.add_argument("--skip", default="", help="patterns of sizes/kernel to leave out, comma-separated")
    build.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="cores to use")
    prove = verbs.add_parser("prove", help="run compiled kernels on this machine's GPU against FP64")
    prove.add_argument("--kernels", type=Path, required=True, help="the folder that `build` made")
    prove.add_argument("--out", type=Path, required=True, help="the probe.json to write, for `record`")
    prove.add_argument(
        "--sizes", default="", help="geometries, comma-separated; all of the folder's by default"
    )
    for verb, run in ((verify, _verify), (record, _record), (build, _build), (prove, _prove)):
        verb.set_defaults(run=run)
    _add_gate(verbs)
    _add_portability(verbs)
    add_kernels(verbs, _say)
    add_tune(verbs, _say)
    return parser


def _add_gate(verbs: Any) -> None:
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
    verb.add_argument("--workers", type=count, default=os.cpu_count() or 1, help="compiles at a time")
    verb.add_argument("--limit-s", type=seconds, default=60.0, help="seconds that one probe may take")
    verb.set_defaults(run=_gate)


def _add_portability(verbs: Any) -> None:
    verb = verbs.add_parser("portability", help="compile a geometry's kernels for many chips")
    sizes = "a geometry: tiny, 0.6b, 1.7b or 4b, with +ENCODING for its encoded kernels"
    verb.add_argument("--sizes", default="4b", help=sizes)
    verb.add_argument("--target", default="all", help="chips, comma-separated, or all of them")
    verb.add_argument("--cache", type=Path, help="folder of what was compiled before; none by default")
    verb.add_argument("--workers", type=count, default=os.cpu_count() or 1, help="compiles at a time")
    verb.add_argument("--limit-s", type=seconds, default=120.0, help="seconds that one compile may take")
    verb.set_defaults(run=_portability)


def _gate(options: argparse.Namespace) -> dict[str, Any]:
    check_kernels_package(ROOT)
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
    return gate(wanted, _say)


def _portability(options: argparse.Namespace) -> dict[str, Any]:
    check_kernels_package(ROOT)
    with missing_package_named():
        from lean.toolchain.portability.matrix import TARGETS, Options, portability
    wanted = Options(
        sizes=options.sizes,
        targets=TARGETS if options.target == "all" else names(options.target),
        cache=options.cache,
        workers=options.workers,
        seconds=options.limit_s,
    )
    return portability(wanted, _say)


def _record(options: argparse.Namespace) -> dict[str, Any]:
    from lean.toolchain.proof.record import write_record
    from lean.toolchain.records import keep, kept_kind

    if kept_kind(options.probe) is not None:
        return keep(options.probe, host=options.host, root=options.root)
    return write_record(options.probe, host=options.host, root=options.root)


def _build(options: argparse.Namespace) -> dict[str, Any]:
    check_kernels_package(ROOT)
    with missing_package_named():
        from lean.toolchain.proof.build import Options, build

    index = build(
        Options(
            out=options.out,
            target=options.target,
            sizes=names(options.sizes),
            skip=names(options.skip),
            workers=options.workers,
        ),
        _say,
    )
    return {"index": str(options.out / "index.json"), "kernels": len(index["kernels"])}


def _prove(options: argparse.Namespace) -> dict[str, Any]:
    check_kernels_package(ROOT)
    with missing_package_named():
        from lean.toolchain.chip.machine import open_gpu
        from lean.toolchain.proof.prove import prove

        machine = open_gpu()
    probe = prove(options.kernels, machine, _say, names(options.sizes))
    options.out.write_text(json.dumps(probe, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {
        name: probe[name] for name in ("status", "run", "seconds", "not_covered", "error") if name in probe
    }


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    check_kernels_package(ROOT)
    with missing_package_named():
        from lean.toolchain.verify.run import Options, verify
    return verify(Options(out=options.out, targets=names(options.target), gpu=options.gpu), os.environ, _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str]) -> dict[str, Any]:
    """Run one verb; the result is what `run_program` prints."""
    options = _parser().parse_args(argv)
    return dict(options.run(options))


def program() -> int:
    """The process: a stopped job ends as an interrupted one does, so that its workers end too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    return run_program(main)


if __name__ == "__main__":
    sys.exit(program())
