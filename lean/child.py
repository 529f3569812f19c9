"""A child process that serves: its words go to a file, it says when it is ready, and it ends with us."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lean.errors import NotReadyError

_LOOK_S = 0.02
_TAIL = 12  # lines of a child's words in an error
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def begin(argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start `argv` in a process group of its own, which Ctrl-C here does not reach; `log` gets its words.

    It is killed when the thread that started it ends. Errors: `OSError`.
    """
    with log.open("wb") as words:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )


def await_ready(
    process: subprocess.Popen[bytes], ready_file: Path, log: Path, *, limit_s: float, who: str
) -> dict[str, Any]:
    """The document that it writes once it is ready. Errors: `NotReadyError` with its last words."""
    deadline = time.monotonic() + limit_s
    while not ready_file.exists():
        if process.poll() is not None:
            raise NotReadyError(f"{who} ended with {process.returncode} before it served: {last_words(log)}")
        if time.monotonic() > deadline:
            raise NotReadyError(f"{who} was not ready within {limit_s:g} s: {last_words(log)}")
        time.sleep(_LOOK_S)
    try:
        return dict(json.loads(ready_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise NotReadyError(f"{who}: {ready_file}: no ready document: {error}") from None


def end(process: subprocess.Popen[bytes], limit_s: float) -> None:
    """SIGTERM, `limit_s` seconds to end, then SIGKILL to its whole group, whatever interrupts this."""
    try:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(limit_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # hung in the kernel, nothing ends it
            process.wait(10.0)


def last_words(log: Path) -> str:
    """The end of what it wrote, on one line."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it left no log"
    return "its last words: " + " | ".join(line.strip() for line in lines[-_TAIL:] if line.strip())[-1500:]


def _end_with_parent() -> None:
    """In the child, before it becomes another program: SIGKILL when the parent's thread ends (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
