"""`python -m lean.accuracy`: an encoded pack against the bf16 pack of the same weights, kept as a record."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lean.accuracy.measure import Options, measure
from lean.accuracy.page import accuracy_page
from lean.accuracy.record import write_accuracy
from lean.bench.arguments import add_record_arguments
from lean.bench.served import read_release
from lean.cli import ProgramParser, run_program
from lean.contracts import to_data
from lean.host_facts import host_facts
from lean.leanserve.plan import RUNNERS


def _parser() -> ProgramParser:
    parser = ProgramParser(prog="python -m lean.accuracy", description="What an encoding of weights costs.")
    parser.add_argument("--pack", type=Path, required=True, help="the encoded pack")
    parser.add_argument("--against", type=Path, required=True, help="the bf16 pack of the same weights")
    parser.add_argument("--runner", choices=RUNNERS, default="torch", help="the backend; default: torch")
    parser.add_argument("--prompts", type=_count, default=16, help="passages to go on from; default: 16")
    parser.add_argument("--tokens", type=_count, default=64, help="greedy tokens behind each; default: 64")
    parser.add_argument("--text", type=Path, help="a text no model was trained on; default: one of our own")
    parser.add_argument("--threads", type=_count, help="of the torch runner; default: by the weights' size")
    add_record_arguments(parser)
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 1 << 16):
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {1 << 16}, got {text!r}")
    return int(text)


def main(argv: list[str]) -> dict[str, Any]:
    """Measure and keep; the result is what `run_program` prints."""
    arguments = _parser().parse_args(argv)
    options = Options(
        pack=arguments.pack,
        against=arguments.against,
        runner=arguments.runner,
        prompts=arguments.prompts,
        tokens=arguments.tokens,
        text=arguments.text,
        threads=arguments.threads,
    )
    record = measure(
        options,
        release=read_release(arguments.release),
        host=arguments.host_name,
        host_facts=host_facts(str(arguments.results)),
    )
    run = write_accuracy(record, arguments.results, accuracy_page(record))
    shown = dict(to_data(record))
    return {
        "run": str(run),
        "place": record.place.as_posix(),
        **{name: shown[name] for name in ("label", "label_reasons", "pack", "reference", "summary", "loss")},
    }


if __name__ == "__main__":
    sys.exit(run_program(main))
