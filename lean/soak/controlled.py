"""A sound engine seen through a proxy that damages its answers, for the time of a block."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from lean.errors import NotReadyError

READY_S = 60.0
STOP_S = 15.0  # more than `lean.soak.control` gives running answers
_LOOK_S = 0.01
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_RELEASE = Path(__file__).resolve().parents[2]
_TAIL = 6  # lines of the proxy's words in an error


@contextmanager
def controlled(
    url: str, kind: Literal["slower", "cut"], *, folder: Path, share: float = 0.06, every: int = 10
) -> Iterator[str]:
    """The URL of a proxy before the engine at `url`, which is gone with the block, or with this process.

    `folder` gets its ready file, `control.json`, and its words, `control.log`. `share` and `every`: see
    `lean.soak.proxy`. To be entered on a thread that lives as long as the block: the kernel ends the proxy
    with the thread that started it. Errors: `NotReadyError` with its last words when it does not listen
    within `READY_S` seconds, or ended by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ready, log = folder / "control.json", folder / "control.log"
    ready.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "lean.soak.control", "--upstream", url, "--kind", kind]
    argv += ["--share", str(share), "--every", str(every), "--ready-file", str(ready)]
    paths = [str(_RELEASE), *filter(None, [os.environ.get("PYTHONPATH")])]
    with log.open("wb") as words:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is ours: whoever waits for an answer ends the proxy
            preexec_fn=_end_with_parent,
        )
    try:
        yield _await_ready(process, ready, log)
        if process.poll() is not None:
            raise NotReadyError(f"the control's proxy ended with {process.returncode}: {_tail(log)}")
    finally:
        _stop(process)
        ready.unlink(missing_ok=True)


def _await_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    deadline = time.monotonic() + READY_S
    while not ready.exists():
        if process.poll() is not None:
            raise NotReadyError(f"the control's proxy ended with {process.returncode}: {_tail(log)}")
        if time.monotonic() > deadline:
            raise NotReadyError(f"the control's proxy was not ready within {READY_S:g} s: {_tail(log)}")
        time.sleep(_LOOK_S)
    return str(json.loads(ready.read_text(encoding="utf-8"))["url"])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, a while to end, SIGKILL."""
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    finally:
        process.kill()
        process.wait()


def _end_with_parent() -> None:
    """In the child, before it becomes the proxy: SIGKILL when the thread that started it ends (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "its last words: " + " | ".join(line.strip() for line in lines[-_TAIL:] if line.strip())[-800:]
