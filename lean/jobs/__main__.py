"""`python -m lean.jobs start|status|list|tail|stop|clean --root DIR … [NAME] [-- argv…]`: one document."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lean.cli import ProgramParser, run_program
from lean.jobs import JobRequest, JobStore, clean, list_jobs, observe, start, stop, tail
from lean.jobs.supervisor import SupervisorSettings, supervise


def main(argv: list[str]) -> dict[str, Any]:
    """Run one verb and return its document."""
    options = _parse(argv)
    if options.verb == "list":
        return {"jobs": [status.document() for status in list_jobs(options.root)]}
    if options.verb == "clean":
        return {"removed": list(clean(options.root, tuple(options.names)))}
    store = JobStore(root=options.root, name=options.name)
    if options.verb == "start":
        request = JobRequest(
            argv=options.argv,
            cwd=options.cwd or options.root,
            heartbeat_s=options.heartbeat,
            final_write_s=options.final_write,
        )
        return start(store, request).document()
    if options.verb == "status":
        return observe(store).document()
    if options.verb == "stop":
        return stop(store, grace_s=options.grace).document()
    return tail(store, options.offset, wait_s=options.wait, limit=options.limit).document()


def _supervise(argv: list[str]) -> int:
    options = _parse(argv)
    return supervise(
        JobStore(root=options.root, name=options.name),
        options.argv,
        options.cwd,
        options.session,
        SupervisorSettings(heartbeat_s=options.heartbeat, final_write_s=options.final_write),
    )


def _parse(argv: list[str]) -> argparse.Namespace:
    """Everything after the first `--` is the job's own; argparse would drop a second `--` in it."""
    cut = argv.index("--") if "--" in argv else len(argv)
    options = _parser().parse_args(argv[:cut])
    options.argv = tuple(argv[cut + 1 :])
    return options


def _parser() -> ProgramParser:
    parser = ProgramParser(prog="python -m lean.jobs", description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (
        ("start", "start a detached job"),
        ("supervise", "internal: stay with a job (started by `start`)"),
        ("status", "one job's status"),
        ("list", "every job's status"),
        ("tail", "the log from an offset on, and the result once it ended"),
        ("stop", "SIGTERM, a grace period, SIGKILL"),
        ("clean", "remove finished jobs"),
    ):
        known = verbs.add_parser(verb, help=text, allow_abbrev=False)
        known.add_argument("--root", type=_absolute, required=True, help="the host's root, which holds jobs/")
        _add_options(verb, known)
    return parser


def _add_options(verb: str, parser: argparse.ArgumentParser) -> None:
    if verb in ("start", "supervise"):
        parser.add_argument("--cwd", type=_absolute, help="working directory (default: the root)")
        parser.add_argument("--heartbeat", type=float, default=2.0, help="seconds between heartbeats")
        parser.add_argument(
            "--final-write",
            type=float,
            default=3600.0,
            help="seconds the last status is tried on a full disk",
        )
    if verb == "supervise":
        parser.add_argument("--session", required=True)
    if verb == "tail":
        parser.add_argument("--offset", type=int, default=0, help="byte offset into the log")
        parser.add_argument("--wait", type=float, default=0.0, help="seconds to wait for something new")
        parser.add_argument("--limit", type=int, default=256 << 10, help="bytes at most")
    if verb == "stop":
        parser.add_argument("--grace", type=float, default=10.0, help="seconds between SIGTERM and SIGKILL")
    if verb == "clean":
        parser.add_argument("names", nargs="*")
    elif verb != "list":
        parser.add_argument("name")


def _absolute(text: str) -> Path:
    return Path(text).expanduser().absolute()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(_supervise(arguments) if arguments[:1] == ["supervise"] else run_program(main))
