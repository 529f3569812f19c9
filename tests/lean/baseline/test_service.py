"""A server of somebody else's: ready means a token, stopped means that nothing of it is left."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lean.baseline import memory, service
from lean.baseline.install import Installed
from lean.baseline.memory import Memory, memory_returned
from lean.baseline.ready import Ended, Ready, ended_file
from lean.baseline.service import deadline_s, free_port, keep_serving
from lean.baseline.systems import SYSTEMS, Launch
from lean.contracts import from_data, to_data
from lean.errors import NotReadyError
from lean.leanpack.manifest import Source

SERVER = """
import http.server, json, os, subprocess, sys, threading
how = sys.argv[2]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, "path", os.environ.get("PYTHONPATH"), flush=True)
if how == "dies":
    sys.exit("no such model")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        count = body["max_tokens"] if how != "short" else 1
        answer = json.dumps({"choices": [{"text": "x"}], "usage": {"completion_tokens": count}}).encode()
        self.send_response(200 if how != "loading" else 503)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
if how == "ends":
    threading.Timer(2.0, os._exit, [3]).start()
server.serve_forever()
"""


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Keep a scripted server until it is ready, or for good; how it ended."""
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    monkeypatch.setattr(memory, "RETURNED_BYTES", 64 << 30)  # other people's GPU work is not ours to judge

    def keep(how: str, stopped: threading.Event | None = None) -> Ended:
        launch = Launch(
            venv=tmp_path,
            model=tmp_path,
            weights=None,
            port=free_port(),
            slots=1,
            length=64,
            gpu=False,
            threads=1,
        )
        monkeypatch.setattr(
            service, "command", lambda *_: (sys.executable, str(script), str(launch.port), how)
        )
        return keep_serving(
            SYSTEMS["vllm"],
            Installed(system="vllm", version="1", venv=tmp_path, packages=("vllm 1",), built=False),
            launch,
            Source(kind="directory", id=None, revision=None, files=()),
            tmp_path / "ready.json",
            weight_bytes=0,
            stopped=stopped or threading.Event(),
            say=lambda line: None,
        )

    return keep


def child_of(tmp_path: Path) -> tuple[int, str]:
    words = (tmp_path / "ready.json.log").read_text().split()
    return int(words[1]), words[3]


def gone(pid: int) -> bool:
    """Whether no such process runs; one that nobody has waited for yet is gone too."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_it_is_ready_after_a_token_and_gone_with_its_children_when_told(
    serve: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/our/packages")
    stopped, ready = threading.Event(), tmp_path / "ready.json"
    seen: dict[str, Any] = {}

    def watch() -> None:
        deadline = time.monotonic() + 60
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        seen.update(json.loads(ready.read_text()) if ready.exists() else {})
        stopped.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    end = serve("well", stopped)
    watcher.join(60)
    assert seen["system"] == "vllm" and seen["pid"] == os.getpid() and seen["url"].startswith("http://127.")
    assert seen["memory"]["before"]["available"] > 0 and seen["packages"] == ["vllm 1"]
    assert (
        from_data(Ready, seen, "ready").device == "cpu" and to_data(from_data(Ready, seen, "ready")) == seen
    )
    assert end.processes_gone and end.memory_returned and not ready.exists()
    assert json.loads(ended_file(ready).read_text()) == to_data(end)
    pid, path = child_of(tmp_path)
    assert gone(pid) and path == "None"


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("dies", r"vllm ended with 1: its last words: child \d+ path \S+ \| no such model"),
        ("short", r"vllm gave no token, none within 1 s; the last answer: HTTP 200"),
        ("loading", r"vllm gave no token, none within 1 s; the last answer: HTTP 503"),
        ("ends", r"vllm ended by itself with 3"),
    ],
)
def test_one_that_gives_no_token_or_ends_by_itself_says_so_and_leaves_nothing(
    serve: Callable[..., Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    says: str,
) -> None:
    if how in ("short", "loading"):
        monkeypatch.setattr(service, "deadline_s", lambda size: 1.0)
    with pytest.raises(NotReadyError, match=says):
        serve(how)
    assert not (tmp_path / "ready.json").exists() and gone(child_of(tmp_path)[0])


def test_the_deadline_grows_with_the_weights() -> None:
    assert deadline_s(0) == 180.0 and deadline_s(8_000_000_000) == pytest.approx(340.0)


def test_memory_that_did_not_come_back_is_said() -> None:
    gib = 1 << 30
    before = Memory(available=100 * gib, gpu_used=gib)
    held = dataclasses.replace(before, gpu_used=9 * gib)
    assert memory_returned(before, before, gpu=True) and not memory_returned(before, held, gpu=True)
    assert memory_returned(before, held, gpu=False)
    unified = Memory(available=100 * gib, gpu_used=None)
    assert memory_returned(unified, unified, gpu=True)
    assert not memory_returned(unified, dataclasses.replace(unified, available=80 * gib), gpu=True)
    assert not memory_returned(Memory(available=None, gpu_used=None), unified, gpu=True)
