"""What every host program shares: one JSON document on standard output, one clear line on standard error."""

from __future__ import annotations

import argparse
import json
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

    Returns the exit code. A `LeanError` also prints one `error:` line on standard error; any other exception
    is a bug and keeps its traceback.
    """
    try:
        document = main(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return _fail(Interrupted("interrupted"))
    except LeanError as error:
        return _fail(error)
    print(json.dumps(document, indent=2, sort_keys=True), flush=True)
    return 0


def _fail(error: LeanError) -> int:
    print(json.dumps(error_document(error)), flush=True)
    print(f"error: {error}", file=sys.stderr, flush=True)
    return error.exit_code
