"""What the verbs that time a contract's kernels are asked, `kernels` and `tune` alike."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lean.errors import UsageError
from lean.toolchain.arguments import SEED, add_workers, missing_package_named, seed

if TYPE_CHECKING:
    from lean.toolchain.speed.contract_shapes import ContractShapes


def add_contract(verb: argparse.ArgumentParser) -> None:
    """The contract in its encoding, and the kernels: compiled here, elsewhere, or for elsewhere."""
    verb.add_argument("--contract", required=True, help="name of a contract in profiles/contracts")
    verb.add_argument("--encoding", help="of the weights, in the place of the contract's own")
    verb.add_argument("--kernels", type=Path, help="a folder that another machine compiled")
    verb.add_argument(
        "--compile-only",
        action="store_true",
        help="compile into --out, for --kernels on a machine without a compiler",
    )
    verb.add_argument("--target", help="with --compile-only: the chip; the contract's own by default")
    verb.add_argument("--seed", type=seed, default=SEED, help="of all random inputs")
    add_workers(verb)


def contract_asked(
    options: argparse.Namespace, folder_contract: Callable[[Path, str], ContractShapes]
) -> ContractShapes:
    """The contract's shapes: of its profile, or as `folder_contract` reads them of the folder `--kernels`.

    Errors: `UsageError` for arguments that exclude one another; those of the profile or the folder.
    """
    if options.compile_only and options.kernels:
        raise UsageError("--compile-only, --kernels: a folder is made, or read, not both")
    if options.target and not options.compile_only:
        raise UsageError("--target: what runs is for the GPU that is here; --compile-only takes a target")
    with missing_package_named():
        from lean.toolchain.speed.contract_shapes import encoded_name, read_shapes

        if options.kernels:
            return folder_contract(options.kernels, encoded_name(options.contract, options.encoding))
        return read_shapes(options.contract, options.encoding)
