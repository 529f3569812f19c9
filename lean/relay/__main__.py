"""`python -m lean.relay send | take-model | take-file`: the two ends of a relay.

`send` prints one JSON document; the takers speak the channel on standard input and output instead.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from lean.cli import ProgramParser, run_program
from lean.errors import LeanError


def _parser() -> ProgramParser:
    parser = ProgramParser(prog="python -m lean.relay", description="The two ends of a relay.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    sending = verbs.add_parser("send", help="download here and answer what the host asks for")
    sending.add_argument("--reader", type=int, required=True, help="descriptor the host's words come from")
    sending.add_argument("--writer", type=int, required=True, help="descriptor that leads to the host")
    sending.add_argument("--spool-folder", type=Path, required=True)
    sending.add_argument("--spool", type=int, required=True, help="bytes that may wait on this disk")
    sending.add_argument("--while-stdin", action="store_true", help="end when standard input ends")
    what = sending.add_mutually_exclusive_group(required=True)
    what.add_argument("--url", help="one file")
    what.add_argument("--source", choices=("hf", "modelscope"))
    sending.add_argument("--id", help="<organisation>/<name> of a hub's model")
    sending.add_argument("--revision", help="branch, tag or commit; pinned before anything is downloaded")
    sending.add_argument("--allow", action="append", default=[], metavar="PATTERN", help="only these files")
    model = verbs.add_parser("take-model", help="complete models/<org>__<name>/<revision> from the channel")
    model.add_argument("--models", type=Path, required=True)
    model.add_argument("--id", required=True)
    model.add_argument("--requested", help="the revision as it was asked for")
    model.add_argument("--allow", action="append", default=[], metavar="PATTERN")
    file = verbs.add_parser("take-file", help="complete one file from the channel")
    file.add_argument("--target", type=Path, required=True)
    file.add_argument("--replace", action="store_true", help="another file of that name may be lost")
    for end in (sending, model, file):
        end.add_argument("--idle", type=float, required=True, help="seconds either direction may stand still")
    return parser


def _send(options: argparse.Namespace) -> dict[str, Any]:
    from lean.relay.laptop import Request, send  # what it imports need not be on a host

    if options.while_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    request = Request(
        url=options.url,
        source=options.source,
        id=options.id,
        revision=options.revision,
        allow=tuple(options.allow),
    )
    return send(
        request,
        reader=options.reader,
        writer=options.writer,
        idle_s=options.idle,
        folder=options.spool_folder,
        limit=options.spool,
    )


def _end_with_stdin() -> None:
    while os.read(0, 1 << 16):  # not sys.stdin: its lock would be held at the interpreter's end
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # everything worth keeping is on a disk


def main(argv: list[str]) -> int:
    """Run one end; its exit code."""
    os.umask(0o077)
    if argv[:1] not in (["take-model"], ["take-file"]):
        return run_program(lambda words: _send(_parser().parse_args(words)), argv)
    from lean.relay.host import take_file, take_model

    options = _parser().parse_args(argv)
    if options.verb == "take-file":
        return take_file(options.target, replace=options.replace, idle_s=options.idle)
    return take_model(
        options.models,
        options.id,
        requested=options.requested,
        allow=tuple(options.allow),
        idle_s=options.idle,
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LeanError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
