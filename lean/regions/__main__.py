"""`python -m lean.regions`: where a decode step's time goes, kept as a record."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from kernels.qwen3 import SPLITS
from lean.bench.arguments import add_record_arguments
from lean.bench.served import read_release
from lean.cli import ProgramParser, run_program
from lean.contracts import load_profile, to_data
from lean.host_facts import host_facts
from lean.leanserve.plan import RUNNERS
from lean.regions.measure import Options, measure_regions
from lean.regions.page import COLUMNS, region_rows, regions_page
from lean.regions.record import write_regions


def _parser() -> ProgramParser:
    parser = ProgramParser(prog="python -m lean.regions", description="Where a decode step's time goes.")
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--profile", required=True, help="name of a profile in profiles/bench")
    parser.add_argument("--runner", choices=RUNNERS, default="torch", help="the backend; default: torch")
    parser.add_argument("--threads", type=_count, help="of the torch runner; default: by the weights' size")
    parser.add_argument("--split-k", type=int, choices=SPLITS, help="cut the output projection of each head")
    add_record_arguments(parser)
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 1024):
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 1024, got {text!r}")
    return int(text)


def main(argv: list[str]) -> dict[str, Any]:
    """Measure and keep; the result is what `run_program` prints."""
    arguments = _parser().parse_args(argv)
    options = Options(
        pack=arguments.pack,
        profile=load_profile(arguments.profile),
        runner=arguments.runner,
        threads=arguments.threads,
        split_k=arguments.split_k,
    )
    record, steps = measure_regions(
        options,
        release=read_release(arguments.release),
        host=arguments.host_name,
        host_facts=host_facts(str(arguments.results)),
    )
    run = write_regions(record, arguments.results, steps, regions_page(record))
    return {
        "run": str(run),
        "place": record.place.as_posix(),
        "label": record.label,
        "runner": record.timed.runner,
        "plain_step_ms": record.plain.step_ms,
        "timed_step_ms": record.timed.step_ms,
        "summary": to_data(record.summary),
        "columns": COLUMNS,
        "rows": region_rows(record.summary),
    }


if __name__ == "__main__":
    sys.exit(run_program(main))
