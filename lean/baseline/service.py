"""One other system, kept running until SIGTERM: ready means a real token, gone means its memory came back.

The server is a process group of its own. When it is told to end, the group is stopped, what is left of it is
killed, and `<ready file>.ended.json` says what was read before it started, while it served, and after.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from lean.baseline.install import Installed
from lean.baseline.systems import Launch, System, command, served_name, settings
from lean.bench.dialect import DIALECTS
from lean.bench.served import weights_sha256
from lean.errors import NotReadyError, PreflightError, from_document
from lean.files.staging import replace_file
from lean.host_facts import ask_nvidia_smi, csv_rows
from lean.leanpack.manifest import Source

SCHEMA = "baseline-service/v1"
BASE_S = 180.0  # to import, compile and capture, however small the model
BYTES_PER_S = 50e6  # the slowest disk that is waited for
STOP_S = 30.0
RETURNED_BYTES = 256 << 20  # by which the GPU's memory may differ afterwards: other contexts come and go
UNIFIED_BYTES = 1 << 30  # and that of a host whose GPU shares its memory
_LOOK_S = 0.1
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SERVER_SETTINGS = ("VLLM_", "SGLANG_", "SGL_", "LLAMA_", "GGML_", "TORCH", "TRANSFORMERS_", "HF_")
_TAIL = 12  # lines of the server's words in an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes: free on the host, and in use on all GPUs by everybody; None where nobody says."""

    available: int | None
    gpu_used: int | None


def deadline_s(weight_bytes: int) -> float:
    """How long a server may take to its first token: a fixed part, and one that grows with the weights."""
    return BASE_S + weight_bytes / BYTES_PER_S


def read_memory() -> Memory:
    """The machine's memory now."""
    available = None
    with contextlib.suppress(OSError, LookupError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = next(line for line in lines if line.startswith("MemAvailable:")).split()[1]
        available = int(kib) << 10
    text, _ = ask_nvidia_smi(("memory.used",))
    used = [row["memory.used"] for row in csv_rows(text, ("memory.used",))]
    known = bool(used) and all(re.fullmatch(r"[0-9]+", mib) for mib in used)
    return Memory(available=available, gpu_used=sum(map(int, used)) << 20 if known else None)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def keep_serving(
    system: System,
    installed: Installed,
    launch: Launch,
    source: Source,
    ready_file: Path,
    *,
    weight_bytes: int,
    stopped: threading.Event,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Serve until `stopped` is set. Returns how it ended, which also lies beside the ready file.

    Errors: `NotReadyError` with the server's last words when no token came in time, or it ended by itself.
    """
    before, started = read_memory(), time.monotonic()
    argv = command(system, launch)
    say(f"starting {system.name} {installed.version}: {' '.join(argv)}")
    log = ready_file.with_name(f"{ready_file.name}.log")
    ended = ended_file(ready_file)
    for stale in (ready_file, ended):
        stale.unlink(missing_ok=True)
    with log.open("wb") as words:
        server = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            env=_clean_environment() | settings(launch),
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    group = server.pid
    try:
        limit = deadline_s(weight_bytes)
        _wait_for_token(system, launch, server, limit, stopped, log)
        seconds = time.monotonic() - started
        serving = read_memory()
        document = {
            "schema": SCHEMA,
            "pid": os.getpid(),
            "url": f"http://127.0.0.1:{launch.port}",
            "port": launch.port,
            "system": system.name,
            "version": installed.version,
            "as_run": system.as_run,
            "dialect": system.dialect,
            "model": served_name(system, launch.model),
            "model_directory": str(launch.model),
            "weights_sha256": weights_sha256(source),
            "source_id": source.id,
            "source_revision": source.revision,
            "device": "cuda" if launch.gpu else "cpu",
            "compute_dtype": "bfloat16",
            "slots": launch.slots,
            "threads": launch.threads,
            "length": launch.length,
            "command": list(argv),
            "settings": settings(launch),
            "packages": list(installed.packages),
            "first_token_seconds": round(seconds, 3),
            "deadline_seconds": limit,
            "memory": {"before": asdict(before), "serving": asdict(serving)},
        }
        replace_file(ready_file, json.dumps(document, indent=1) + "\n")
        say(f"{system.name} gave its first token after {seconds:.1f} s")
        while not stopped.wait(0.5):
            if server.poll() is not None:
                raise NotReadyError(f"{system.name} ended by itself with {server.returncode}: {_tail(log)}")
    finally:
        _stop_group(server, group)
        ready_file.unlink(missing_ok=True)
    end = _ended(system, group, before, serving, gpu=launch.gpu)
    replace_file(ended, json.dumps(end, indent=1) + "\n")
    say(f"{system.name} is gone; {end['verdict']}")
    return end


def ended_file(ready_file: Path) -> Path:
    """Where it says how the last one ended."""
    return ready_file.with_name(f"{ready_file.name}.ended.json")


_TWO_TOKENS = "two tokens"


def _ask(client: httpx.Client, body: dict[str, Any], timeout: float, said: list[str]) -> None:
    """Say in a line what a completion of two tokens came to."""
    try:
        answer = client.post("/v1/completions", json=body, timeout=timeout)
        whole = answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 2
        words = f"HTTP {answer.status_code}: {' '.join(answer.text.split())[:300]}"
        said.append(_TWO_TOKENS if whole else words)
    except (httpx.HTTPError, ValueError, LookupError, TypeError, RuntimeError) as error:
        said.append(f"{type(error).__name__}: {error}")


def _clean_environment() -> dict[str, str]:
    """Our own less what would change a server unseen, and less the path to our packages.

    transformers would take our `kernels` for another package.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith(_SERVER_SETTINGS)
    }


def _end_with_parent() -> None:
    """In the child, before it becomes the server: SIGKILL when this process dies (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for_token(
    system: System,
    launch: Launch,
    server: subprocess.Popen[bytes],
    limit: float,
    stopped: threading.Event,
    log: Path,
) -> None:
    """Until a completion of two tokens came back whole. Errors: `NotReadyError`."""
    dialect, deadline = DIALECTS[system.dialect], time.monotonic() + limit
    body = {
        "model": served_name(system, launch.model),
        "prompt": "The lamp",
        "max_tokens": 2,
        "temperature": 0.0,
        **dialect.fields(2),
    }
    body.pop("stream_options", None)
    last = "nothing listens yet"
    with httpx.Client(base_url=f"http://127.0.0.1:{launch.port}", trust_env=False) as client:
        while time.monotonic() < deadline and not stopped.is_set():
            if server.poll() is not None:
                raise NotReadyError(f"{system.name} ended with {server.returncode}: {_tail(log)}")
            said: list[str] = []
            left = max(1.0, deadline - time.monotonic())
            # apart: a first token may take minutes, and being told to end does not wait for it
            asking = threading.Thread(target=_ask, args=(client, body, left, said), daemon=True)
            asking.start()
            while asking.is_alive() and not stopped.is_set() and time.monotonic() < deadline + 1.0:
                asking.join(_LOOK_S)
            if said and said[0] == _TWO_TOKENS:
                return
            last = said[0] if said else "none yet"
            stopped.wait(_LOOK_S)
    why = "it was told to end before" if stopped.is_set() else f"none within {limit:.0f} s"
    raise NotReadyError(f"{system.name} gave no token, {why}; the last answer: {last}; {_tail(log)}")


def _stop_group(server: subprocess.Popen[bytes], group: int) -> None:
    """SIGTERM to the server's group, a while to end, SIGKILL to what is left of it."""
    deadline = time.monotonic() + STOP_S
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
        while time.monotonic() < deadline and (server.poll() is None or _alive(group)):
            time.sleep(_LOOK_S)
        deadline += 10.0
    server.wait(timeout=10.0)


def _alive(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _ended(system: System, group: int, before: Memory, serving: Memory, *, gpu: bool) -> dict[str, Any]:
    """That no process is left and the memory is back, or what is missing, and by which reading."""
    after, wait_until = read_memory(), time.monotonic() + 10.0
    while not _returned(before, after, gpu=gpu) and time.monotonic() < wait_until:
        time.sleep(0.5)  # a driver frees a context behind its process
        after = read_memory()
    gone, back = not _alive(group), _returned(before, after, gpu=gpu)
    if not gpu:
        by = "its processes are gone"
    elif before.gpu_used is not None:
        by = "memory in use on the GPU"
    else:
        by = "memory available on the host, which the GPU shares"
    verdict = f"its memory {'came back' if gone and back else 'did NOT come back'} ({by})"
    return {
        "schema": f"{SCHEMA}-ended",
        "system": system.name,
        "processes_gone": gone,
        "memory_returned": gone and back,
        "verdict": verdict,
        "memory": {"before": asdict(before), "serving": asdict(serving), "after": asdict(after)},
    }


def _returned(before: Memory, after: Memory, *, gpu: bool) -> bool:
    """Whether what a GPU held is free again; without one the memory goes with the processes.

    Where nobody says what a GPU holds (GB10: its memory is the host's), what is available there decides.
    """
    if not gpu:
        return True
    if before.gpu_used is not None and after.gpu_used is not None:
        return after.gpu_used <= before.gpu_used + RETURNED_BYTES
    if before.available is None or after.available is None:
        return False
    return after.available >= before.available - UNIFIED_BYTES


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "its last words: " + " | ".join(line.strip() for line in lines[-_TAIL:] if line.strip())[-1500:]


def run_own(venv: Path, release: Path, module: str, *arguments: str) -> None:
    """Run a program of ours in a system's environment. Errors: the program's own."""
    done = subprocess.run(
        [str(venv / "bin" / "python"), "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(release)},
        check=False,
    )
    try:
        document = json.loads(done.stdout)
    except ValueError:
        document = {}
    if "error" in document:
        raise from_document(document)
    if done.returncode:
        raise PreflightError(f"{module} ended with {done.returncode}; the log has its words")


def stop_on_signals() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    return stopped


def say_on_stderr(line: str) -> None:
    """A line of the job's log."""
    print(line, file=sys.stderr, flush=True)
