"""What the verbs' arguments have in common."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator

from lean.errors import PreflightError, UsageError

SEED = 20260725  # of all random inputs, where no other is asked for


def count(text: str) -> int:
    """A number of workers or samples."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 1024):
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 1024, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """A seed, as torch takes them."""
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < 1 << 63):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2**63 - 1, got {text[:40]!r}")
    return int(text)


def add_workers(verb: argparse.ArgumentParser) -> None:
    """--workers, for verbs that compile."""
    verb.add_argument("--workers", type=count, default=os.cpu_count() or 1, help="compiles at a time")


def say(line: str) -> None:
    """A line of progress, on standard error: standard output is the document's."""
    print(line, file=sys.stderr, flush=True)


def seconds(text: str) -> float:
    """A time limit."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 86400.0:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0 and at most a day, got {text!r}")
    return value


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def whole_numbers(flag: str, text: str) -> tuple[int, ...]:
    """Numbers with commas between them. Errors: `UsageError`."""
    try:
        return tuple(int(name) for name in names(text))
    except ValueError:
        raise UsageError(f"{flag} {text!r}: expected whole numbers, comma-separated") from None


@contextlib.contextmanager
def missing_package_named() -> Iterator[None]:
    """Imports in the block that fail for want of a package are a `PreflightError` with the fix."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("lean", "kernels"):
            raise
        raise PreflightError(
            f"the Python package {error.name} is missing; pip install 'leanstack[host]' into the Python that "
            "runs this"
        ) from None
