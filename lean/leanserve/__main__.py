"""`python -m lean.leanserve plan | token | measure | serve`: one JSON document on standard output.

torch is by far the longest import. It starts in a thread before the service's own imports, which run beside
it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lean.cli import ProgramParser, run_program
from lean.errors import PreflightError, UsageError

if TYPE_CHECKING:
    from lean.contracts import BenchProfile
    from lean.in_process import InProcess
    from lean.leanserve.runner import Runner

STARTED = time.monotonic()
RELEASE = Path(__file__).resolve().parents[2].name  # a sync names the folder so


def _parser() -> ProgramParser:
    from kernels.qwen3 import SPLITS
    from lean.leanserve.plan import BUCKETS, RUNNERS

    parser = ProgramParser(prog="python -m lean.leanserve", description="Plan and run the resident service.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    plan = verbs.add_parser("plan", help="print what would be resident, without loading anything")
    what = plan.add_mutually_exclusive_group(required=True)
    what.add_argument("--contract", help="name of a contract in profiles/contracts")
    what.add_argument("--pack", type=Path, help="a pack; its own sizes are used")
    plan.add_argument("--encoding", help="with --contract: of the weights, instead of the contract's")
    plan.add_argument("--results", type=Path, help="with the cuda runner: project from the runs below it")
    token = verbs.add_parser("token", help="make a bearer token unless there is one")
    token.add_argument("--token-file", type=Path, required=True, help="bearer token, mode 0600")
    measure = verbs.add_parser("measure", help="run a bench profile on the runner alone, without HTTP")
    measure.add_argument("--pack", type=Path, required=True)
    measure.add_argument("--profile", required=True, help="name of a profile in profiles/bench")
    measure.add_argument("--threads", type=_within(1, 1024), help="default: by the size of the weights")
    measure.add_argument("--out", type=Path, help="write the document there too")
    serve = verbs.add_parser("serve", help="serve a pack on 127.0.0.1 until SIGTERM")
    serve.add_argument("--pack", type=Path, required=True)
    for verb in (plan, measure, serve):
        verb.add_argument("--runner", choices=RUNNERS, default="torch", help="the backend; default: torch")
        verb.add_argument("--slots", type=int, choices=BUCKETS, default=1, help="streams at once; default: 1")
        verb.add_argument("--dtype", choices=("float32", "bfloat16"), help="of activations and cache")
        verb.add_argument(
            "--split-k",
            type=int,
            choices=SPLITS,
            help="cut the output projection of each head; default: whole",
        )
    serve.add_argument("--port", type=_within(0, 65535), default=0, help="0, the default, takes a free one")
    serve.add_argument("--token-file", type=Path, required=True, help="bearer token, mode 0600")
    serve.add_argument("--ready-file", type=Path, required=True, help="written once a token came out")
    serve.add_argument("--threads", type=_within(1, 1024), help="default: by the size of the weights")
    serve.add_argument("--bucket", type=int, choices=BUCKETS, help="always decode this many rows")
    serve.add_argument(
        "--queue", type=_within(0, 1 << 20), default=32, help="requests that may wait; default: 32"
    )
    seconds = _within(0.001, 86_400, float)
    serve.add_argument(
        "--drain-seconds", type=seconds, default=30.0, help="for running streams after SIGTERM"
    )
    serve.add_argument(
        "--send-seconds", type=seconds, default=60.0, help="a client that reads nothing is cut"
    )
    serve.add_argument(
        "--gate", type=Path, action="append", default=[], help="a gate.json, or a folder of gate runs"
    )
    serve.add_argument("--regions", type=Path, help="write the times of each step's regions to this new file")
    serve.add_argument(
        "--allow-uncleared", action="store_true", help="serve an encoding that this host's gate did not clear"
    )
    for verb, run in ((plan, _plan), (token, _token), (measure, _measure), (serve, _serve)):
        verb.set_defaults(run=run)
    return parser


def _within(low: float, high: float, kind: type[int] | type[float] = int) -> Callable[[str], float]:
    """A parser of numbers from `low` to `high`."""

    def number(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:  # nor is NaN
            raise argparse.ArgumentTypeError(f"expected {low:g} to {high:g}, got {value:g}")
        return value

    return number


def _plan(arguments: argparse.Namespace) -> dict[str, Any]:
    from lean.contracts import encoded_contract, load_contract, to_data
    from lean.leanserve.plan import resident_plan

    weight_bytes = None
    if arguments.pack is not None:
        if arguments.encoding is not None:
            raise UsageError("--encoding: a pack has its own; leave it out, or name a --contract")
        from lean.leanpack import read_manifest

        manifest, _ = read_manifest(arguments.pack)
        contract, weight_bytes = manifest.contract, manifest.weight_bytes
    else:
        contract = encoded_contract(load_contract(arguments.contract), arguments.encoding)
    plan = resident_plan(
        contract,
        slots=arguments.slots,
        runner=arguments.runner,
        compute_dtype=arguments.dtype,
        weight_bytes=weight_bytes,
        split_k=arguments.split_k,
    )
    document = dict(to_data(plan))
    if arguments.runner == "cuda" and arguments.results is not None:
        from lean.leanserve.projection import project

        document["projection"] = to_data(project(contract, arguments.results))
    return document


def _token(arguments: argparse.Namespace) -> dict[str, Any]:
    from lean.bearer import ensure_token

    return {"token_file": str(arguments.token_file), "made": ensure_token(arguments.token_file)}


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    from lean.contracts import load_profile, to_data
    from lean.files.staging import replace_file
    from lean.host_facts import host_id
    from lean.leanpack import open_pack
    from lean.leanserve.plan import available_memory, require_memory, resident_plan
    from lean.leanserve.rounds import measure
    from lean.leanserve.service import make_runner

    pack = open_pack(arguments.pack)
    manifest = pack.manifest
    plan = resident_plan(
        manifest.contract,
        slots=arguments.slots,
        runner=arguments.runner,
        compute_dtype=arguments.dtype,
        weight_bytes=manifest.weight_bytes,
        split_k=arguments.split_k,
    )
    profile = load_profile(arguments.profile)
    if profile.batch > plan.slots:
        raise UsageError(f"profile {profile.id} runs {profile.batch} streams; use --slots {profile.batch}")
    if arguments.runner != "cuda":
        require_memory(plan, available_memory())
    runner = make_runner(arguments.runner, pack, plan, arguments.threads)
    result = measure(runner, profile, contract=manifest.contract.id, lock=pack.lock, weights=manifest.weights)
    result = replace(
        _with_speed(result, runner, profile),
        release=RELEASE,
        host=host_id(),
        finished_utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    document = dict(to_data(result))
    if arguments.out is not None:
        try:
            replace_file(arguments.out, json.dumps(document, indent=1) + "\n")
        except OSError as error:
            raise PreflightError(f"{arguments.out}: cannot be written: {error.strerror}") from None
    return document


def _with_speed(result: InProcess, runner: Runner, profile: BenchProfile) -> InProcess:
    """The result with what only a runner of our own kernels has: what reading and each kernel reach."""
    if runner.facts.name != "cuda":
        return result
    from lean.leanserve.cuda.runner import CudaRunner
    from lean.leanserve.cuda.speed import measure_speed

    assert isinstance(runner, CudaRunner)
    speed = measure_speed(runner.appliance, profile)
    return replace(
        result, read_bandwidth=speed.read_bandwidth, kernels=speed.kernels, sweep_bytes=speed.sweep_bytes
    )


def _serve(arguments: argparse.Namespace) -> dict[str, Any]:
    from lean.leanserve.preflight import ServeOptions, preflight

    options = {name: value for name, value in vars(arguments).items() if name not in ("verb", "run")}
    prepared = preflight(ServeOptions(**(options | {"gate": tuple(arguments.gate)})))
    if prepared.options.runner == "torch":
        threading.Thread(target=_import_torch, name="import-torch", daemon=True).start()
    from lean.leanserve.service import serve

    return serve(prepared, started=STARTED)


def _import_torch() -> None:
    # Only a head start: the engine's thread imports it again and reports what is missing.
    with contextlib.suppress(ImportError):
        importlib.import_module("torch")


def main(argv: list[str]) -> dict[str, Any]:
    """Run one verb; the result is what `run_program` prints."""
    arguments = _parser().parse_args(argv)
    return dict(arguments.run(arguments))


if __name__ == "__main__":
    code = run_program(main)
    sys.stderr.flush()
    # A failed start can end while torch is being imported; the interpreter's own end would trip over it.
    os._exit(code)
