"""`python -m lean.models fetch | list | probe`: one JSON document on standard output."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lean.cli import ProgramParser, run_program
from lean.contracts import load_contract, to_data
from lean.errors import PreflightError, UsageError
from lean.models.directory import DirectorySource
from lean.models.fetch import FetchReport, fetch
from lean.models.huggingface import HuggingFaceSource
from lean.models.listing import SnapshotList, list_snapshots
from lean.models.modelscope import ModelScopeSource
from lean.models.probe import ProbeReport, probe
from lean.models.source import ModelSource, check_id, check_revision


def _parser() -> ProgramParser:
    parser = ProgramParser(prog="python -m lean.models", description="Fetch and probe model directories.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    fetching = verbs.add_parser("fetch", help="complete models/<org>__<name>/<revision>")
    fetching.add_argument("--source", choices=("hf", "modelscope", "local"), required=True)
    fetching.add_argument("--id", required=True, help="<organisation>/<name>")
    fetching.add_argument("--models", type=Path, required=True, help="directory that holds the models")
    fetching.add_argument("--path", type=Path, help="the directory to copy from; with --source local only")
    fetching.add_argument("--revision", help="branch, tag or commit; pinned before anything is downloaded")
    fetching.add_argument("--allow", action="append", default=[], metavar="PATTERN", help="only these files")
    fetching.add_argument("--endpoint", help="address of the hub; default: HF_ENDPOINT, MODELSCOPE_ENDPOINT")
    listing = verbs.add_parser("list", help="the complete snapshots of a models folder")
    listing.add_argument("--models", type=Path, required=True, help="directory that holds the models")
    listing.add_argument("--id", help="only of this model")
    probing = verbs.add_parser("probe", help="say what a model directory holds")
    probing.add_argument("folder", type=Path)
    probing.add_argument("--contract", help="compare with this contract's model")
    for verb, run in ((fetching, _fetch), (listing, _list), (probing, _probe)):
        verb.set_defaults(run=run)
    return parser


def _source(arguments: argparse.Namespace) -> ModelSource:
    if (arguments.path is not None) != (arguments.source == "local"):
        raise UsageError("--path names the directory of --source local, and belongs to no other source")
    model_id = check_id(arguments.id)
    if arguments.source == "local" and arguments.revision is not None:
        raise UsageError(
            "--revision is the hub's; a local directory's revision is the hash of its content, leave it out"
        )
    revision = None if arguments.revision is None else check_revision(arguments.revision)
    if arguments.source == "local":
        return DirectorySource(path=arguments.path)
    if arguments.source == "hf":
        return HuggingFaceSource(id=model_id, revision=revision, endpoint=arguments.endpoint)
    private = arguments.models / ".modelscope"
    return ModelScopeSource(id=model_id, revision=revision, endpoint=arguments.endpoint, private=private)


def _fetch(arguments: argparse.Namespace) -> FetchReport:
    allow, source = tuple(arguments.allow), _source(arguments)
    try:
        return fetch(source, arguments.id, arguments.models, requested=arguments.revision, allow=allow)
    except ModuleNotFoundError as error:  # an environment of the user's own may lack the hubs' clients
        raise PreflightError(
            f"--source {arguments.source} needs {error.name}; install it into the Python that runs this"
        ) from None


def _list(arguments: argparse.Namespace) -> SnapshotList:
    return list_snapshots(arguments.models, arguments.id)


def _probe(arguments: argparse.Namespace) -> ProbeReport:
    return probe(arguments.folder, load_contract(arguments.contract) if arguments.contract else None)


def main(argv: list[str]) -> dict[str, Any]:
    """Run one verb; the result is what `run_program` prints."""
    arguments = _parser().parse_args(argv)
    return dict(to_data(arguments.run(arguments)))


if __name__ == "__main__":
    sys.exit(run_program(main))
