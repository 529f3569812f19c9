"""`python -m lean.soak run | show`: one JSON document on standard output."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lean.bench.arguments import add_record_arguments
from lean.bench.prompt import open_tokenizer
from lean.bench.record import Release
from lean.bench.served import read_release
from lean.cli import ProgramParser, end_in_order, run_program
from lean.contracts import load_plan, to_data
from lean.contracts.catalog import ROOT
from lean.contracts.soak import SoakPlan
from lean.errors import ContractError, LeanError, error_document
from lean.leanpack.read import read_manifest
from lean.soak.engine import EngineInputs
from lean.soak.finish import Kept, keep, standing
from lean.soak.run import Soak, run_soak
from lean.soak.state import SoakState
from lean.soak.workload import make_workload

DATA = ROOT / "profiles" / "soak" / "data"


def _parser() -> ProgramParser:
    parser = ProgramParser(prog="python -m lean.soak", description="Arms, phases and a verdict.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run a plan, or go on with one")
    show = verbs.add_parser("show", help="how far a soak is, and what would be said of it now")
    for verb in (run, show):
        verb.add_argument("--root", type=Path, required=True, help="the folder of the host's soaks")
        verb.add_argument("--plan", required=True, help="name of a plan in profiles/soak")
    run.add_argument("--resume", action="store_true", help="go on with the newest soak of this plan")
    run.add_argument("--force", action="store_true", help="with --resume: do anew what is done or changed")
    run.add_argument("--pack", type=Path, required=True, help="ours, of the contract, in bf16")
    run.add_argument("--contract", required=True, help="name of a contract in profiles/contracts")
    run.add_argument("--runner", required=True, help="ours, where an arm names none")
    run.add_argument("--venvs", type=Path, required=True, help="folder of other systems' environments")
    run.add_argument("--model", type=Path, help="the checkpoint that other systems serve")
    run.add_argument("--gate", type=Path, action="append", default=[], help="where gate records lie")
    run.add_argument("--gpu", choices=("auto", "none"), default="auto")
    add_record_arguments(run)
    run.set_defaults(run=_run)
    show.set_defaults(run=_show)
    return parser


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    end_in_order()  # a stopped soak leaves its record too
    plan, release = load_plan(arguments.plan), read_release(arguments.release)
    manifest, lock = read_manifest(arguments.pack)
    if manifest.contract.id != arguments.contract:
        raise ContractError(
            f"{arguments.pack}: a pack of {manifest.contract.id}, not of {arguments.contract}"
        )
    workload = make_workload(
        plan, open_tokenizer(arguments.pack / "tokenizer"), (DATA, arguments.root / "data")
    )
    state = _state(arguments, plan)
    with state.lock():
        state.note("resumed" if arguments.resume else "began", release=release.id, force=arguments.force)
        _say(f"soak {state.folder.name}: {len(plan.arms)} arms, {', '.join(plan.phases)}")
        soak = Soak(
            state=state,
            workload=workload,
            inputs=EngineInputs(
                contract=arguments.contract,
                pack=arguments.pack,
                runner=arguments.runner,
                venvs=arguments.venvs,
                model=arguments.model,
                gate=tuple(arguments.gate),
                gpu=arguments.gpu,
            ),
            lock=lock,
            release=release.id,
            say=_say,
            force=arguments.force,
        )
        stopped: LeanError | None = None
        try:
            run_soak(soak)
        except LeanError as error:
            stopped = error
        kept = _kept(soak, stopped, release, arguments)
    document = dict(to_data(kept.record)) | {"run": str(kept.place), "place": kept.record.place.as_posix()}
    failure = stopped or kept.failure
    return document | ({} if failure is None else error_document(failure))


def _kept(soak: Soak, stopped: LeanError | None, release: Release, arguments: argparse.Namespace) -> Kept:
    """The record, also of a soak that was stopped. Errors: why it was, when there is none to keep."""
    try:
        host, results = arguments.host_name, arguments.results
        return keep(soak, release=release, host=host, results=results)
    except LeanError as error:
        raise stopped or error from None


def _state(arguments: argparse.Namespace, plan: SoakPlan) -> SoakState:
    """A new folder, or the one to go on with. Errors: `ContractError` when its plan is another one by now."""
    if not arguments.resume:
        return SoakState.new(arguments.root, plan)
    state = SoakState.newest(arguments.root, plan.id)
    if state.plan != plan:
        raise ContractError(
            f"profiles/soak/{plan.id}.yaml changed since {state.folder.name} began; restore it, or begin a "
            "new soak without --resume: its rows would not belong together"
        )
    return state


def _show(arguments: argparse.Namespace) -> dict[str, Any]:
    return standing(SoakState.newest(arguments.root, arguments.plan))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str]) -> dict[str, Any]:
    """Run one verb; the result is what `run_program` prints."""
    arguments = _parser().parse_args(argv)
    return dict(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(run_program(main))
