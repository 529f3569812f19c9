"""One other system, kept running until SIGTERM: ready means a real token, gone means its memory came back.

The server is a process group of its own. When it is told to end, the group is stopped, what is left of it is
killed, and `<ready file>.ended.json` says what was read before it started, while it served, and after.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from lean.baseline.install import Installed
from lean.baseline.memory import Memory, memory_returned, read_memory
from lean.baseline.ready import Ended, Ready, ended_file, write_document
from lean.baseline.systems import Launch, System, command, served_name, settings
from lean.bench.dialect import DIALECTS
from lean.bench.served import weights_sha256
from lean.child import begin, last_words
from lean.errors import NotReadyError, PreflightError, from_document
from lean.leanpack.manifest import Source

BASE_S = 180.0  # to import, compile and capture, however small the model
BYTES_PER_S = 50e6  # the slowest disk that is waited for
STOP_S = 30.0
_LOOK_S = 0.1
_SERVER_SETTINGS = ("VLLM_", "SGLANG_", "SGL_", "LLAMA_", "GGML_", "TORCH", "TRANSFORMERS_", "HF_")


def deadline_s(weight_bytes: int) -> float:
    """How long a server may take to its first token: a fixed part, and one that grows with the weights."""
    return BASE_S + weight_bytes / BYTES_PER_S


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
) -> Ended:
    """Serve until `stopped` is set. Returns how it ended, which also lies beside the ready file.

    Errors: `NotReadyError` with the server's last words when no token came in time, or it ended by itself.
    """
    before, started = read_memory(), time.monotonic()
    argv = command(system, launch)
    say(f"starting {system.name} {installed.version}: {' '.join(argv)}")
    ended = ended_file(ready_file)
    for stale in (ready_file, ended):
        stale.unlink(missing_ok=True)
    log = ready_file.with_name(f"{ready_file.name}.log")
    server = _start(argv, launch, log)
    try:
        limit = deadline_s(weight_bytes)
        _wait_for_token(system, launch, server, limit, stopped, log)
        seconds = time.monotonic() - started
        readings = {"before": before, "serving": read_memory()}
        ready = _ready(system, installed, launch, source, seconds=seconds, limit=limit, memory=readings)
        write_document(ready, ready_file)
        say(f"{system.name} gave its first token after {seconds:.1f} s")
        while not stopped.wait(0.5):
            if server.poll() is not None:
                raise NotReadyError(
                    f"{system.name} ended by itself with {server.returncode}: {last_words(log)}"
                )
    finally:
        _stop_group(server)
        ready_file.unlink(missing_ok=True)
    end = _ended(ready, server.pid)
    write_document(end, ended)
    say(f"{system.name} is gone; {end.verdict}")
    return end


def _ready(
    system: System,
    installed: Installed,
    launch: Launch,
    source: Source,
    *,
    seconds: float,
    limit: float,
    memory: dict[str, Memory],
) -> Ready:
    """What it says once a token came out after `seconds` of the `limit` it had."""
    return Ready(
        pid=os.getpid(),
        url=f"http://127.0.0.1:{launch.port}",
        port=launch.port,
        system=system.name,
        version=installed.version,
        as_run=system.as_run,
        dialect=system.dialect,
        model=served_name(system, launch.model),
        model_directory=str(launch.model),
        weights_sha256=weights_sha256(source),
        source_id=source.id,
        source_revision=source.revision,
        device="cuda" if launch.gpu else "cpu",
        compute_dtype="bfloat16",
        slots=launch.slots,
        threads=launch.threads,
        length=launch.length,
        command=command(system, launch),
        settings=settings(launch),
        packages=installed.packages,
        first_token_seconds=round(seconds, 3),
        deadline_seconds=limit,
        memory=memory,
    )


def _start(argv: Sequence[str], launch: Launch, log: Path) -> subprocess.Popen[bytes]:
    """The server in a process group of its own; its words go to `log`."""
    return begin(argv, log, _clean_environment() | settings(launch))


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
                raise NotReadyError(f"{system.name} ended with {server.returncode}: {last_words(log)}")
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
    raise NotReadyError(f"{system.name} gave no token, {why}; the last answer: {last}; {last_words(log)}")


def _stop_group(server: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server's group, a while to end, SIGKILL to what is left of it."""
    group = server.pid
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


def _ended(ready: Ready, group: int) -> Ended:
    """That no process is left and the memory is back, or what is missing, and by which reading."""
    before, gpu = ready.memory["before"], ready.device == "cuda"
    after, wait_until = read_memory(), time.monotonic() + 10.0
    while not memory_returned(before, after, gpu=gpu) and time.monotonic() < wait_until:
        time.sleep(0.5)  # a driver frees a context behind its process
        after = read_memory()
    gone, back = not _alive(group), memory_returned(before, after, gpu=gpu)
    if not gpu:
        by = "its processes are gone"
    elif before.gpu_used is not None:
        by = "memory in use on the GPU"
    else:
        by = "memory available on the host, which the GPU shares"
    return Ended(
        system=ready.system,
        processes_gone=gone,
        memory_returned=gone and back,
        verdict=f"its memory {'came back' if gone and back else 'did NOT come back'} ({by})",
        memory={**ready.memory, "after": after},
    )


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
