"""`python -m lean.leanpack build | kernels | list | inspect | verify`: one JSON document on standard out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lean.cli import ProgramParser, run_program
from lean.contracts import encoded_contract, load_contract, to_data
from lean.leanpack.build import BuildRequest, build_pack, check_request, draft_manifest, open_origin
from lean.leanpack.compile import kernel_specs_of
from lean.leanpack.listing import PackList, list_packs
from lean.leanpack.manifest import source_matches
from lean.leanpack.prebuilt import write_kernels
from lean.leanpack.read import read_manifest
from lean.leanpack.sealing import BuildReport
from lean.leanpack.verify import VerifyReport, verify_pack


def _parser() -> ProgramParser:
    parser = ProgramParser(prog="python -m lean.leanpack", description="Build, inspect and verify packs.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser("build", help="build packs/<contract>-<lock8> from a checkpoint directory")
    weights = build.add_mutually_exclusive_group(required=True)
    weights.add_argument("--model", type=Path, help="directory with config.json and safetensors shards")
    weights.add_argument(
        "--random", type=int, metavar="SEED", help="random weights instead, with the demo's tokenizer"
    )
    build.add_argument("--contract", required=True, help="name of a contract in profiles/contracts")
    build.add_argument("--packs", type=Path, required=True, help="directory that holds the packs")
    build.add_argument("--target", help="cpu, sm_90, …, comma-separated; default: the contract's")
    build.add_argument("--kernels", type=Path, help="a folder of compiled kernels, instead of the compiler")
    build.add_argument(
        "--manifest-only", action="store_true", help="print what would be built and write nothing"
    )
    build.add_argument("--overwrite", action="store_true", help="build anew even where the same pack exists")
    kernels = verbs.add_parser("kernels", help="compile a contract's kernels for a machine without compiler")
    kernels.add_argument("--contract", required=True, help="name of a contract in profiles/contracts")
    kernels.add_argument("--target", help="sm_90, …, comma-separated; default: the contract's")
    kernels.add_argument("--out", type=Path, required=True, help="a new folder")
    listing = verbs.add_parser("list", help="the packs of a folder")
    listing.add_argument("--packs", type=Path, required=True, help="directory that holds the packs")
    listing.add_argument("--contract", help="only of this contract")
    inspect = verbs.add_parser("inspect", help="show a pack without loading it")
    verify = verbs.add_parser("verify", help="hash and check everything")
    for verb in (build, kernels):
        verb.add_argument(
            "--encoding", help="of the weights; another than the contract's makes a contract of its own"
        )
    for verb, run in (
        (build, _build),
        (kernels, _kernels),
        (listing, _list),
        (inspect, _inspect),
        (verify, _verify),
    ):
        verb.set_defaults(run=run)
    for verb in (inspect, verify):
        verb.add_argument("pack", type=Path)
    return parser


def _build(arguments: argparse.Namespace) -> BuildReport | dict[str, Any]:
    contract = encoded_contract(load_contract(arguments.contract), arguments.encoding)
    request = BuildRequest(
        model=arguments.model,
        seed=arguments.random,
        contract=contract,
        packs=arguments.packs,
        encoding=contract.encoding,
        target=arguments.target or contract.target,
        overwrite=arguments.overwrite,
        kernels=arguments.kernels,
    )
    if not arguments.manifest_only:
        return build_pack(request)
    compiler = check_request(request)
    with open_origin(request) as origin:
        draft = draft_manifest(request, origin, compiler)
    kernels = {
        target.name: [spec.name for spec in kernel_specs_of(contract, target.name)]
        for target in draft.targets
        if target.runner == "cuda"
    }
    return {"built": False, "weight_bytes": draft.weight_bytes, "kernels": kernels, "manifest": draft}


def _kernels(arguments: argparse.Namespace) -> dict[str, Any]:
    contract = encoded_contract(load_contract(arguments.contract), arguments.encoding)
    targets = tuple(sorted(set((arguments.target or contract.target).split(","))))
    folder = write_kernels(contract, targets, arguments.out)
    counts = {target.name: len(target.kernels) for target in folder.targets}
    return {"path": str(arguments.out), "kernels": counts, "toolchain": folder.toolchain}


def _list(arguments: argparse.Namespace) -> PackList:
    return list_packs(arguments.packs, arguments.contract)


def _inspect(arguments: argparse.Namespace) -> dict[str, Any]:
    manifest, lock = read_manifest(arguments.pack)
    return {
        "path": str(arguments.pack),
        "lock": lock,
        "hashed": False,
        "source_matches": source_matches(manifest),
        "weight_bytes": manifest.weight_bytes,
        "bytes": sum(file.size for file in manifest.files),
        "manifest": manifest,
    }


def _verify(arguments: argparse.Namespace) -> VerifyReport:
    return verify_pack(arguments.pack)


def main(argv: list[str]) -> dict[str, Any]:
    """Run one verb; the result is what `run_program` prints."""
    arguments = _parser().parse_args(argv)
    return dict(to_data(arguments.run(arguments)))


if __name__ == "__main__":
    sys.exit(run_program(main))
