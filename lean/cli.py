"""What every host program shares: one JSON document on standard output, one clear line on standard error."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from lean.errors import Interrupted, LeanError, UsageError, error_document


class ProgramParser(argparse.ArgumentParser):
    """An argument parser whose errors are `UsageError`: exit code 1 and a JSON document, not argparse's 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def run_program(main: Callable[[list[str]], dict[str, Any]], argv: list[str] | None = None) -> int:
    """Run `main(argv)` and print its result, or its failure, as the program's one JSON document.

    What it writes is its owner's alone.

    Returns the exit code. A document with an `error` (see `error_document`) beside its result ends with that
    error's exit code: the work left something behind although it failed. A `LeanError` also prints one
    `error:` line on standard error; any other exception is a bug and keeps its traceback.
    """
    os.umask(0o077)
    try:
        document = main(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return _fail(Interrupted("interrupted"))
    except LeanError as error:
        return _fail(error)
    print(json.dumps(document, indent=2, sort_keys=True), flush=True)
    failure = document.get("error")
    if failure is None:
        return 0
    print(f"error: {failure['message']}", file=sys.stderr, flush=True)
    return int(failure["exit_code"])


def end_in_order() -> None:
    """Make a stop (SIGTERM) what Ctrl-C is, so that the work's own clean-up runs, wherever it was started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def _fail(error: LeanError) -> int:
    print(json.dumps(error_document(error)), flush=True)
    print(f"error: {error}", file=sys.stderr, flush=True)
    return error.exit_code
