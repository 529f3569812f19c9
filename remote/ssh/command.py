"""Commands as argv lists: the one place where anything is quoted for a remote shell.

An SSH server hands a command to the user's shell as one string, so every argv goes through `command_line`.
Nothing else in this project builds a string for a remote shell. Environment travels as the argv
`env NAME=value …`, not through the protocol's own `env` request (servers drop it) nor Fabric's `env=` (it
leaves values unquoted).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lean.errors import LeanError, PreflightError, UsageError, from_document

SHOWN = 200  # characters of a command or of its output that an error message quotes

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """What a command that ended left. Bytes that are not UTF-8 read as U+FFFD.

    `killed`: a signal ended it; the exit code is then 255, as OpenSSH's client has it.
    """

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    killed: bool = False

    def check(self, host: str) -> CommandResult:
        """Return itself when the command succeeded, else raise its `failure`."""
        if self.exit_code != 0:
            raise self.failure(host)
        return self

    def failure(self, host: str) -> LeanError:
        """The error a non-zero exit stands for.

        A host program's own error document comes back as the exception it was; a missing program is a
        `PreflightError`; anything else is a `LeanError` with the last line the command wrote.
        """
        document = _error_document(self.stdout)
        if document is not None:
            return from_document(document)
        shown = shown_command(self.argv)
        if self.exit_code == 127:
            return PreflightError(f"{host}: no such program: `{shown}`; install it there or correct the path")
        how = "was killed by a signal" if self.killed else f"exited with {self.exit_code}"
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return LeanError(f"{host}: `{shown}` {how}" + (f": {lines[-1][:SHOWN]}" if lines else ""))


def command_line(argv: Sequence[str]) -> str:
    """One command string in which every argument stays one word and is never expanded.

    Errors: `UsageError` for an empty argv, a NUL byte, a program that reads as an option or an assignment.
    """
    if isinstance(argv, str) or not argv:
        raise UsageError(f"a command is a list of at least one argument, got {argv!r}")
    program = argv[0]
    if not program or program.startswith("-") or "=" in program:
        raise UsageError(f"program name {program!r} would be read as an option or an assignment")
    for word in argv:
        if not isinstance(word, str) or "\0" in word:
            raise UsageError(f"argument {word!r} is not text without NUL bytes")
    return shlex.join(argv)


def plain_name(what: str, value: str) -> str:
    """`value`, fit to be one name in a folder here. Errors: `UsageError` for any other."""
    if not value or value.startswith(("-", ".")) or "/" in value or _CONTROL.search(value):
        raise UsageError(f"{what} {value!r}: expected a plain name without '/', no leading '.' or '-'")
    return value


def plain_path(what: str, value: str) -> str:
    """`value`, fit to be passed as a path after `--`.

    Errors: `UsageError` for control characters or a leading '-'.
    """
    if not value or value.startswith("-") or _CONTROL.search(value):
        raise UsageError(f"{what} {value!r}: expected a path without control characters or a leading '-'")
    return value


def shown_command(argv: Sequence[str]) -> str:
    """The command as a message quotes it: one line, shortened."""
    text = _CONTROL.sub("?", shlex.join(argv))
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _error_document(text: str) -> dict[str, Any] | None:
    if '"error"' not in text:
        return None
    try:
        document = json.loads(text)
    except ValueError:
        return None
    body = document.get("error") if isinstance(document, dict) else None
    return document if isinstance(body, dict) and "kind" in body and "message" in body else None
