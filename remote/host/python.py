"""How a host program is started: the release on PYTHONPATH, an interpreter, a module, its arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryFile
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


def local_program(
    module: str, *arguments: str, on_line: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Run `python -m module …` of this checkout on this machine and return its JSON document.

    `on_line` hears each line of its standard error as it comes. Errors: the `LeanError` its error document
    describes.
    """
    argv = [sys.executable, "-m", module, *arguments]
    with TemporaryFile("w+") as answer:
        done = subprocess.Popen(argv, cwd=REPOSITORY, stdout=answer, stderr=subprocess.PIPE, text=True)
        said: deque[str] = deque(maxlen=20)
        with done:
            assert done.stderr is not None
            for line in done.stderr:
                said.append(line)
                if not line.startswith("error: "):  # the caller tells it
                    on_line(line.rstrip("\n"))
        answer.seek(0)
        text = answer.read()
    try:
        document: dict[str, Any] = json.loads(text)
    except ValueError:
        reason = "".join(said).strip()[-300:]
        raise LeanError(f"python -m {module} ended with {done.returncode}: {reason}") from None
    if "error" in document:
        raise from_document(document)
    return document
