"""`python -m lean.leanserve plan | token | serve`: one JSON document on standard output.

torch is by far the longest import. It starts in a thread before the service's own imports, which run beside
it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lean.cli import ProgramParser, run_program

STARTED = time.monotonic()


def _parser() -> ProgramParser:
    parser = ProgramParser(prog="python -m lean.leanserve", description="Plan and run the resident service.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    plan = verbs.add_parser("plan", help="print what would be resident, without loading anything")
    what = plan.add_mutually_exclusive_group(required=True)
    what.add_argument("--contract", help="name of a contract in profiles/contracts")
    what.add_argument("--pack", type=Path, help="a pack; its own sizes are used")
    token = verbs.add_parser("token", help="make a bearer token unless there is one")
    token.add_argument("--token-file", type=Path, required=True, help="bearer token, mode 0600")
    serve = verbs.add_parser("serve", help="serve a pack on 127.0.0.1 until SIGTERM")
    serve.add_argument("--pack", type=Path, required=True)
    serve.add_argument("--runner", default="torch", help="the backend; default: torch")
    for verb in (plan, serve):
        verb.add_argument("--slots", type=int, default=1, help="streams at once: 1, 2, 4 or 8; default: 1")
        verb.add_argument("--dtype", choices=("float32", "bfloat16"), help="of activations and cache")
    serve.add_argument("--port", type=_port, default=0, help="0, the default, takes a free one")
    serve.add_argument("--token-file", type=Path, required=True, help="bearer token, mode 0600")
    serve.add_argument("--ready-file", type=Path, required=True, help="written once a token came out")
    serve.add_argument("--threads", type=_positive, help="default: by the size of the weights")
    serve.add_argument("--bucket", type=_positive, help="always decode this many rows (1, 2, 4, 8)")
    serve.add_argument("--queue", type=_count, default=32, help="requests that may wait; default: 32")
    serve.add_argument(
        "--drain-seconds", type=_seconds, default=30.0, help="for running streams after SIGTERM"
    )
    serve.add_argument(
        "--send-seconds", type=_seconds, default=60.0, help="a client that reads nothing is cut"
    )
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {value}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most 86400 seconds, got {value:g}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected 0 to 65535, got {value}")
    return value


def _plan(arguments: argparse.Namespace) -> dict[str, Any]:
    from lean.contracts import load_contract, to_data
    from lean.leanserve.plan import resident_plan

    weight_bytes = None
    if arguments.pack is not None:
        from lean.leanpack import read_manifest

        manifest, _ = read_manifest(arguments.pack)
        contract, weight_bytes = manifest.contract, manifest.weight_bytes
    else:
        contract = load_contract(arguments.contract)
    plan = resident_plan(
        contract, slots=arguments.slots, compute_dtype=arguments.dtype, weight_bytes=weight_bytes
    )
    return dict(to_data(plan))


def _token(arguments: argparse.Namespace) -> dict[str, Any]:
    from lean.bearer import ensure_token

    return {"token_file": str(arguments.token_file), "made": ensure_token(arguments.token_file)}


def _serve(arguments: argparse.Namespace) -> dict[str, Any]:
    from lean.leanserve.preflight import ServeOptions, preflight

    options = {name: value for name, value in vars(arguments).items() if name != "verb"}
    prepared = preflight(ServeOptions(**options))
    threading.Thread(target=_import_torch, name="import-torch", daemon=True).start()
    from lean.leanserve.service import serve

    return serve(prepared, started=STARTED)


def _import_torch() -> None:
    # Only a head start: the engine's thread imports it again and reports what is missing.
    with contextlib.suppress(ImportError):
        importlib.import_module("torch")


def main(argv: list[str]) -> dict[str, Any]:
    """Run one verb."""
    arguments = _parser().parse_args(argv)
    return {"plan": _plan, "token": _token, "serve": _serve}[arguments.verb](arguments)


if __name__ == "__main__":
    code = run_program(main)
    sys.stderr.flush()
    # A failed start can end while torch is still being imported; the interpreter's own end would trip over
    # it.
    os._exit(code)
