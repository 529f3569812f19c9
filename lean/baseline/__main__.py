"""`python -m lean.baseline list | needs | install | serve | ended`: one JSON document on standard output."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lean.baseline.install import Installed, environment_of, install, read_installed
from lean.baseline.ready import ended_file
from lean.baseline.service import free_port, keep_serving, run_own, say_on_stderr, stop_on_signals
from lean.baseline.systems import SYSTEMS, Launch, System, system_named
from lean.cli import ProgramParser, run_program
from lean.errors import NotReadyError, PreflightError
from lean.host_facts import host_facts
from lean.host_venv import platform_facts


def _parser() -> ProgramParser:
    parser = ProgramParser(prog="python -m lean.baseline", description="Other systems, measured beside ours.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    listed = verbs.add_parser("list", help="the systems, their pins, and which are installed here")
    needs = verbs.add_parser("needs", help="whether a system is installed, and for what platform it would be")
    put = verbs.add_parser("install", help="make a system's own environment")
    put.add_argument("--bring", type=Path, help="a folder with every package, in the place of the internet")
    serve = verbs.add_parser("serve", help="serve a checkpoint on 127.0.0.1 until SIGTERM")
    ended = verbs.add_parser("ended", help="how the last one ended")
    for verb in (needs, put, serve):
        verb.add_argument("--system", required=True, type=system_named, help=f"one of {', '.join(SYSTEMS)}")
    for verb in (listed, needs, put, serve):
        verb.add_argument("--venvs", required=True, type=Path, help="folder of the environments")
    serve.add_argument("--model", required=True, type=Path, help="a checkpoint in Hugging Face's layout")
    serve.add_argument("--contract", required=True, help="the contract whose model it must be")
    serve.add_argument("--slots", type=int, default=1, help="streams at once")
    serve.add_argument("--length", type=int, required=True, help="positions that a stream may take")
    serve.add_argument("--threads", type=int, help="of the CPU; the system's own choice by default")
    serve.add_argument("--gpu", choices=("auto", "none"), default="auto")
    for verb in (serve, ended):
        verb.add_argument("--ready-file", required=True, type=Path, help="written once a token came out")
    for verb, run in (
        *((listed, _list), (needs, _needs), (put, _install), (serve, _serve)),
        (ended, _ended),
    ):
        verb.set_defaults(run=run)
    return parser


def _list(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "systems": [
            {
                "name": system.name,
                "version": system.version,
                "requirements": list(system.requirements),
                "needs_gpu": system.needs_gpu,
                "as_run": system.as_run,
                "installed": read_installed(system, environment_of(system, arguments.venvs)) is not None,
            }
            for system in SYSTEMS.values()
        ]
    }


def _needs(arguments: argparse.Namespace) -> dict[str, Any]:
    _check_gpu(arguments.system)
    venv = environment_of(arguments.system, arguments.venvs)
    installed = read_installed(arguments.system, venv) is not None
    return {"environment": venv.name, "installed": installed, "platform": platform_facts()}


def _install(arguments: argparse.Namespace) -> dict[str, Any]:
    _check_gpu(arguments.system)
    done = install(arguments.system, arguments.venvs, say_on_stderr, bring=arguments.bring)
    return asdict(done) | {"venv": str(done.venv), "packages": list(done.packages)}


def _check_gpu(system: System) -> bool:
    """Whether there is a GPU. Errors: `PreflightError` for a system that needs one."""
    gpu = bool(host_facts()["gpus"])
    if system.needs_gpu and not gpu:
        raise PreflightError(f"{system.name} needs an NVIDIA GPU, and this host has none")
    return gpu


def _serve(arguments: argparse.Namespace) -> dict[str, Any]:
    from lean.contracts import load_contract, to_data
    from lean.leanpack.checkpoint import Checkpoint
    from lean.leanpack.source import check_fits, describe_source

    system: System = arguments.system
    stopped = stop_on_signals()
    gpu = _check_gpu(system) and arguments.gpu == "auto"
    installed = read_installed(system, environment_of(system, arguments.venvs))
    if installed is None:
        raise NotReadyError(f"{system.name} is not installed here; run `install` first")
    with Checkpoint(arguments.model) as checkpoint:
        check_fits(checkpoint, load_contract(arguments.contract).model)
        source = describe_source(checkpoint)
        size = sum(slot.size for _, slot in checkpoint.tensors.values())
    launch = Launch(
        venv=installed.venv,
        model=arguments.model,
        weights=_weights(system, installed, arguments.model),
        port=free_port(),
        slots=arguments.slots,
        length=arguments.length,
        gpu=gpu,
        threads=arguments.threads,
    )
    end = keep_serving(
        system,
        installed,
        launch,
        source,
        arguments.ready_file,
        weight_bytes=size,
        stopped=stopped,
        say=say_on_stderr,
    )
    return dict(to_data(end))


def _weights(system: System, installed: Installed, model: Path) -> Path | None:
    """The file that llama.cpp reads, written anew in the system's own Python; it takes as long as a copy."""
    if system.name != "llama.cpp":
        return None
    out = installed.venv / "weights.gguf"
    release = Path(__file__).resolve().parents[2]
    run_own(installed.venv, release, "lean.baseline.gguf_file", str(model), str(out))
    return out


def _ended(arguments: argparse.Namespace) -> dict[str, Any]:
    file = ended_file(arguments.ready_file)
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise NotReadyError(f"{file}: no baseline has ended here; see its job's log") from None


def main(argv: list[str]) -> dict[str, Any]:
    """Run one verb; the result is what `run_program` prints."""
    arguments = _parser().parse_args(argv)
    os.umask(0o077)
    return dict(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(run_program(main))
