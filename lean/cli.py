"""What every host program shares: one JSON document on standard output, one clear line on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from lean.errors import Interrupted, LeanError, error_document


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
