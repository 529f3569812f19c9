"""`python -m lean.bench`: measure a resident service on this machine, or draw a run's pages again.

    run     --url U --token-file F --profile NAME --contract NAME --pack DIR --service FILE --release FILE
            --host-name NAME --results DIR      measure, write a run directory, print its path and numbers
            [--in-process FILE | --no-in-process WHY]   what `leanserve measure` left, kept in the record
    report  RUN --out DIR                       report.md and plot.png again, from run.json alone
    versus  --ours RUN --baseline RUN --name ID --out DIR [--steps FILE]
                                                our runs against another system's: gate, ratio, report

Exit codes: 7 when the run is unfair or throttled, 6 when the service is not ready; the record is written
either way.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any, get_args

from lean.bench.arguments import add_record_arguments
from lean.bench.baseline_comparison import Steps, compare_with_baseline
from lean.bench.baseline_gate import read_ran
from lean.bench.baseline_page import headline, write_comparison
from lean.bench.client import ClientSettings
from lean.bench.in_process_file import NOT_GIVEN
from lean.bench.measure import BenchPlan, FinishedRun, run_bench
from lean.bench.record import read_json, read_run
from lean.bench.served import measured_contract, read_release
from lean.bench.shown_run import invalid_reasons
from lean.bench.store import write_pages
from lean.cli import ProgramParser, end_in_order, run_program
from lean.contracts import BenchProfile, Contract, from_data, load_contract, load_profile, to_data
from lean.contracts.bench import Process
from lean.errors import InvalidRunError, UsageError, error_document
from lean.host_facts import host_facts


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    end_in_order()  # a stopped job leaves its record too
    return _document(run_bench(_plan(arguments)))


def _plan(arguments: argparse.Namespace) -> BenchPlan:
    profile, overridden = _override(load_profile(arguments.profile), arguments)
    return BenchPlan(
        url=arguments.url,
        token_file=arguments.token_file,
        contract=_contract(arguments),
        profile=profile,
        overridden=overridden,
        pack=arguments.pack,
        tokenizer=arguments.tokenizer,
        service_file=arguments.service,
        release=read_release(arguments.release),
        host=arguments.host_name,
        host_facts=host_facts(str(arguments.results)),
        results=arguments.results,
        prompt_form=arguments.prompt,
        settings=ClientSettings(read=arguments.read_timeout, request=arguments.request_timeout),
        command=("python", "-m", "lean.bench", *map(_shareable, arguments.argv)),
        in_process=arguments.in_process,
        no_in_process=None if arguments.in_process else _shareable(arguments.no_in_process),
    )


def _contract(arguments: argparse.Namespace) -> Contract:
    named = load_contract(arguments.contract)
    return named if arguments.pack is None else measured_contract(named, arguments.pack)


def _override(profile: BenchProfile, arguments: argparse.Namespace) -> tuple[BenchProfile, tuple[str, ...]]:
    """The profile with what the command line changed, and the names of the fields that differ."""
    changed = profile.with_counts(requests=arguments.requests, warmup_requests=arguments.warmup)
    changed = changed.with_load(
        concurrency=arguments.concurrency, rate_per_s=arguments.rate, process=arguments.arrivals
    )
    fields = ("requests", "warmup_requests", "concurrency", "arrivals")
    return changed, tuple(name for name in fields if getattr(changed, name) != getattr(profile, name))


def _document(run: FinishedRun) -> dict[str, Any]:
    record = run.record
    document = {
        "run": str(run.path),
        "place": record.place.as_posix(),
        "status": record.status,
        "label": record.label,
        "label_reasons": list(record.label_reasons),
        "reasons": list(invalid_reasons(record)),
        "metrics": to_data(record.metrics),
        "load": to_data(record.load),
    }
    return document if record.failure is None else document | {"error": to_data(record.failure)}


def _report(arguments: argparse.Namespace) -> dict[str, Any]:
    record, out = read_run(arguments.run_directory), arguments.out
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise UsageError(f"{out}: exists; a run is never rewritten, name a new directory") from None
    write_pages(record, out)
    return {"out": str(out), "files": sorted(file.name for file in out.iterdir())}


def _against_baseline(arguments: argparse.Namespace) -> dict[str, Any]:
    steps = (
        from_data(Steps, read_json(arguments.steps), str(arguments.steps)).steps if arguments.steps else ()
    )
    ours, baseline = (tuple(map(read_ran, folders)) for folders in (arguments.ours, arguments.baseline))
    found = compare_with_baseline(arguments.name, ours, baseline, steps)
    write_comparison(found, arguments.out)
    document = {"out": str(arguments.out), "headline": headline(found), **to_data(found)}
    if found.status == "ok":
        return document
    return document | error_document(InvalidRunError("; ".join(found.reasons)))


def _shareable(text: str) -> str:
    """The text with the user's home as `~`: records are published, and a home names its owner."""
    home = os.path.expanduser("~").rstrip("/") + "/"
    return re.sub(rf"(?<![\w./~-]){re.escape(home)}", "~/", text)


def _parser() -> ProgramParser:
    parser = ProgramParser(prog="python -m lean.bench", description="Measure a resident service.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="measure one profile and write a run directory")
    run.add_argument("--url", required=True, help="http://127.0.0.1:PORT of the service")
    for name in ("--profile", "--contract"):
        run.add_argument(name, required=True)
    run.add_argument("--service", required=True, type=Path, help="the ready document of what is measured")
    run.add_argument("--token-file", type=Path, help="its bearer token, where it wants one")
    what = run.add_mutually_exclusive_group(required=True)
    what.add_argument("--pack", type=Path, help="the pack that our service serves")
    what.add_argument("--tokenizer", type=Path, help="of another system: the folder of its checkpoint")
    add_record_arguments(run)
    run.add_argument("--requests", type=int, help="measured requests per stream, instead of the profile's")
    run.add_argument("--warmup", type=int, help="warm-up requests per stream, instead of the profile's")
    run.add_argument("--concurrency", type=int, help="streams of a round, instead of one a slot")
    run.add_argument("--rate", type=float, help="requests a second, sent whether or not others were answered")
    run.add_argument("--arrivals", choices=get_args(Process), help="how a rate's gaps are; default: poisson")
    run.add_argument("--prompt", choices=("ids", "text"), default="ids", help="what goes over the wire")
    run.add_argument(
        "--read-timeout", type=float, default=ClientSettings().read, help="seconds between bytes"
    )
    run.add_argument(
        "--request-timeout", type=float, default=ClientSettings().request, help="seconds per request"
    )
    in_process = run.add_mutually_exclusive_group()
    in_process.add_argument("--in-process", type=Path, help="what `leanserve measure --out` wrote, kept too")
    in_process.add_argument("--no-in-process", default=NOT_GIVEN, help="why there is none, for the record")
    report = verbs.add_parser("report", help="draw report.md and plot.png again from run.json")
    report.add_argument("run_directory", metavar="run", type=Path)
    report.add_argument("--out", type=Path, required=True)
    against = verbs.add_parser("versus", help="hold our runs against another system's")
    for flag, of in (("--ours", "our service"), ("--baseline", "the other system")):
        against.add_argument(
            flag, type=Path, action="append", required=True, help=f"a run of {of}; once for each"
        )
    against.add_argument("--name", required=True, help="of the comparison")
    against.add_argument("--out", type=Path, required=True, help="a new folder for versus.json and its page")
    against.add_argument("--steps", type=Path, help="the protocol as it was done")
    for verb, does in ((run, _run), (report, _report), (against, _against_baseline)):
        verb.set_defaults(run=does)
    return parser


def main(argv: list[str]) -> dict[str, Any]:
    """Run one verb. Errors: see `run_bench`, and `ContractError` for a wrong name or file."""
    arguments = _parser().parse_args(argv, argparse.Namespace(argv=argv))
    return dict(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(run_program(main))
