"""The verbs `build` and `prove` of `python -m lean.toolchain`: arguments, and what they run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lean.toolchain.arguments import add_workers, missing_package_named, names, say

SIZES = "tiny,tiny+fp8-e4m3,tiny+int4-codebook,tiny+nvfp4,0.6b,1.7b,4b"


def add_build(verbs: Any) -> None:
    """`build`."""
    verb = verbs.add_parser("build", help="compile the appliance's kernels for a machine without a compiler")
    verb.add_argument("--out", type=Path, required=True, help="empty folder that gets the binaries")
    verb.add_argument("--target", required=True, help="the chip to compile for, such as sm_90")
    verb.add_argument("--sizes", default=SIZES, help="geometries, comma-separated")
    verb.add_argument("--skip", default="", help="patterns of sizes/kernel to leave out, comma-separated")
    add_workers(verb)
    verb.set_defaults(run=_build)


def add_prove(verbs: Any) -> None:
    """`prove`."""
    verb = verbs.add_parser("prove", help="run compiled kernels on this machine's GPU against FP64")
    verb.add_argument("--kernels", type=Path, required=True, help="the folder that `build` made")
    verb.add_argument("--out", type=Path, required=True, help="the probe.json to write, for `record`")
    verb.add_argument(
        "--sizes", default="", help="geometries, comma-separated; all of the folder's by default"
    )
    verb.set_defaults(run=_prove)


def _build(options: argparse.Namespace) -> dict[str, Any]:
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
        say,
    )
    return {"index": str(options.out / "index.json"), "kernels": len(index["kernels"])}


def _prove(options: argparse.Namespace) -> dict[str, Any]:
    with missing_package_named():
        from lean.toolchain.chip.machine import open_gpu
        from lean.toolchain.proof.prove import prove

        machine = open_gpu()
    probe = prove(options.kernels, machine, say, names(options.sizes))
    options.out.write_text(json.dumps(probe, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {
        name: probe[name] for name in ("status", "run", "seconds", "not_covered", "error") if name in probe
    }
