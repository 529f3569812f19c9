"""How a host program is started: the release on PYTHONPATH, an interpreter, a module, its arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from lean.errors import LeanError, from_document
from remote.paths import REPOSITORY


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPython:
    """`release` is the absolute path of a synced release on the host; `python` runs it."""

    release: str
    python: str

    def argv(self, module: str, *arguments: str) -> list[str]:
        """`env PYTHONPATH=… python -m module …`. Nothing in the working directory can shadow a module."""
        environment = ["env", f"PYTHONPATH={self.release}", "PYTHONSAFEPATH=1"]
        return [*environment, self.python, "-m", module, *arguments]


def local_program(module: str, *arguments: str) -> dict[str, Any]:
    """Run `python -m module …` of this checkout on this machine and return its JSON document.

    Errors: the `LeanError` its error document describes.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=REPOSITORY, capture_output=True, text=True
    )
    try:
        document: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        reason = done.stderr.strip()[-300:]
        raise LeanError(f"python -m {module} ended with {done.returncode}: {reason}") from None
    if "error" in document:
        raise from_document(document)
    return document
