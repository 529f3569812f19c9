"""The service in a process of its own, for the time of a measurement."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.bearer import ensure_token
from lean.errors import NotReadyError

READY_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A service that answers. `seconds`: from its start until it was ready; `ready`: its ready document."""

    pid: int
    seconds: float
    ready: dict[str, Any]
    token_file: Path


@contextmanager
def running_service(pack: Path, threads: int) -> Iterator[Running]:
    """Start the torch runner's service with one slot and end it with the block. Errors: `NotReadyError`."""
    argv = ["lean.leanserve", "serve", "--pack", str(pack), "--threads", str(threads)]
    with _started(argv, takes_token=True) as running:
        yield running


@contextmanager
def paced_service(tokenizer: Path, *, first_ms: float, token_ms: float) -> Iterator[Running]:
    """One without a model, whose tokens come at an exact pace, in a process of its own too."""
    argv = ["lean.costs.paced", "--tokenizer", str(tokenizer), "--first-ms", str(first_ms)]
    with _started([*argv, "--token-ms", str(token_ms)], takes_token=False) as running:
        yield running


@contextmanager
def _started(argv: list[str], *, takes_token: bool) -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as folder:
        token, ready = Path(folder, "token"), Path(folder, "ready.json")
        ensure_token(token)
        argv = [sys.executable, "-m", *argv, "--ready-file", str(ready)]
        argv += ["--token-file", str(token)] if takes_token else []
        started = time.perf_counter()
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            while not ready.exists():
                if process.poll() is not None or time.perf_counter() - started > READY_S:
                    process.kill()
                    raise NotReadyError(f"the service did not start: {process.communicate()[1][-300:]}")
                time.sleep(0.002)
            seconds = time.perf_counter() - started
            document = json.loads(ready.read_text())
            yield Running(pid=process.pid, seconds=seconds, ready=document, token_file=token)
        finally:
            process.terminate()
            process.communicate()
