"""A host made ready: connected, this checkout's release on it, and the interpreter that runs the release.

Everything a verb asks of the appliance goes through here as argv, and comes back as one JSON document.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from lean.contracts import load_hosts
from lean.errors import LeanError, from_document
from remote.settings import REPOSITORY


def default_contract() -> str:
    """The contract of the default host."""
    return load_hosts(REPOSITORY).get()[1].contract


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
        raise LeanError(
            f"python -m {module} ended with {done.returncode}: {done.stderr.strip()[-300:]}"
        ) from None
    if "error" in document:
        raise from_document(document)
    return document
