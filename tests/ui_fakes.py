"""The page's server as a process of its own, verbs that are a small script, and a service that streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from helpers import REPO, until

TOKEN = "a-token-of-the-fake-service"

# What each verb does is said by its profile: `decode_64_512` works until it is interrupted, `_b8` is deaf to
# that and has a child of its own, `prefill_1024_64` does not count; `remote.serve` fails. `remote.soak` says
# what is in the file `soak.lines` and goes on until it is interrupted, as one that is detached, or until
# there is a file `soak.end`, its record's path; with `--show` it answers the file `standing.json`.
VERBS = r"""
import json, os, pathlib, signal, subprocess, sys, time
verb, words = sys.argv[1], sys.argv[2:]
assert words[0] == "--json", words
here = pathlib.Path(__file__).parent
(here / "pids").mkdir(exist_ok=True)
(here / "pids" / str(os.getpid())).write_text(verb)
(here / "argv.jsonl").open("a").write(json.dumps(sys.argv[1:]) + "\n")
def say(text): print(text, file=sys.stderr, flush=True)
def answer(document): print(json.dumps(document, indent=2), flush=True)
def fail(code, message):
    answer({"error": {"kind": "LeanError", "message": message, "exit_code": code}})
    say("error: " + message)
    sys.exit(code)
say(f"{verb} begins")
if verb == "remote.forward":
    answer({"url": (here / "service").read_text() + "/v1", "token_file": str(here / "token")})
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
elif verb == "remote.status":
    if "idle" in words: fail(6, "idle has no job 'serve'; run: invoke remote.serve")
    if "away" in words: fail(3, "away: no route; is it on?")
    answer({"state": "running", "ready": True, "model": "m", "contract": "tiny-cpu",
            "lock": "0123456789abcdef", "runner": {"name": "torch", "slots": 2}, "url": "http://127.0.0.1:1"})
elif verb == "remote.jobs":
    answer({"jobs": [{"name": "serve", "state": "running"}, {"name": "pack", "state": "exited"}]})
elif verb == "remote.soak" and "--show" in words:
    kept = here / "standing.json"
    try:
        while (here / "standing.wait").exists(): time.sleep(0.02)
    except KeyboardInterrupt:
        fail(130, "interrupted")
    if not kept.exists(): fail(6, "no soak 'quick' in /soak; there: none")
    answer(json.loads(kept.read_text()))
elif verb == "remote.soak":
    for line in (here / "soak.lines").read_text().splitlines(): say("    " + line)
    try:
        while not (here / "soak.end").exists(): time.sleep(0.02)
        answer({"path": (here / "soak.end").read_text(), "verdicts": []})
    except KeyboardInterrupt:
        fail(130, "detached; job 'soak' goes on. Re-attach: invoke remote.jobs --host loopback --follow soak")
elif verb == "remote.serve":
    fail(4, "no pack on loopback; run: invoke remote.pack")
elif "decode_64_512" in words:
    try:
        say("works until it is interrupted")
        time.sleep(60)
    except KeyboardInterrupt:
        fail(130, "interrupted; the measurement and its service were stopped")
elif "decode_64_256_b8" in words:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "60"])
    (here / "pids" / str(child.pid)).write_text("grandchild")
    say("deaf")
    child.wait()
elif "prefill_1024_64" in words:
    fail(7, "throttled: the clock fell to half")
else:
    answer({"path": "results/v1/loopback/decode_64_256/20261121T000000.000Z-0123456", "label": "exploratory",
            "token_file": "/a/secret/place", "tokens": 256})
"""
SERVER = """
import json, sys
from pathlib import Path
from remote.ui.child import Patience
from remote.ui.choices import Commands
from remote.ui.server import serve_page
folder = Path(sys.argv[1])
serve_page(
    lambda keys: print(json.dumps({"url": keys.url, "port": keys.port}), flush=True),
    results=folder / "results",
    commands=Commands(prefix=(sys.executable, str(folder / "verbs.py")), folder=folder),
    patience=Patience(interrupt=1.0, terminate=1.0, pipes=0.5),
)
"""


@dataclass(frozen=True)
class RunningPage:
    """A page's server, its address with the token, and a browser's worth of cookies."""

    process: subprocess.Popen[str]
    url: str
    port: int
    folder: Path
    client: httpx.Client

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, document: Any = None, **headers: str) -> httpx.Response:
        """As the page's own script asks."""
        return self.client.post(path, json=document or {}, headers={"Origin": self.base} | headers)

    def begin(self, kind: str, **names: Any) -> httpx.Response:
        return self.post("/api/operation", {"kind": kind, **names})

    def measure(self, profile: str) -> httpx.Response:
        return self.begin("bench", host="loopback", profile=profile)

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and data of each server-sent event."""
        with self.client.stream("GET", "/api/events", timeout=20) as response:
            name = ""
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)

    def ended(self) -> tuple[dict[str, Any], list[str]]:
        """Wait for the operation's end: how it ended, and every line of progress."""
        lines = []
        for name, data in self.events():
            if name == "line":
                lines.append(data["text"])
            elif name == "operation" and data["state"] not in ("running", "cancelling"):
                return data, lines
        raise AssertionError("the events ended before the operation did")

    def says(self, text: str) -> None:
        """Wait for a line of progress."""
        assert any(name == "line" and text in data["text"] for name, data in self.events())

    def pids(self) -> set[int]:
        """Every process that a verb was, or started."""
        return {int(path.name) for path in (self.folder / "pids").glob("*")}

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@contextmanager
def running_page(folder: Path) -> Iterator[RunningPage]:
    """A page's server over verbs of our own; it and its children are gone afterwards."""
    (folder / "results").mkdir(exist_ok=True)
    (folder / "verbs.py").write_text(VERBS)
    argv = [sys.executable, "-c", SERVER, str(folder)]
    process = subprocess.Popen(argv, cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = json.loads(process.stdout.readline())
        base = f"http://127.0.0.1:{said['port']}"
        with httpx.Client(base_url=base, trust_env=False, timeout=20) as client:
            assert client.get(said["url"]).status_code == 200
            yield RunningPage(process, said["url"], said["port"], folder, client)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent to look does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def none_alive(pids: set[int]) -> None:
    """Wait until all of them are gone."""
    until(lambda: {pid for pid in pids if alive(pid)}, lambda left: not left, within_s=10)


class FakeService(BaseHTTPRequestHandler):
    """OpenAI's completions with server-sent events; `count` tokens, then usage."""

    count = 5
    gate: threading.Event | None = None
    seen: list[str]

    def do_GET(self) -> None:
        self._json({"data": [{"id": "a-model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).seen.append(str(self.headers["Authorization"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for number in range(self.count):
                if number == 2 and self.gate is not None:
                    self.gate.wait(20)
                self._event({"choices": [{"text": f"{body['prompt']}{number} ", "token_ids": [number]}]})
            self._event({"choices": [{"text": "", "finish_reason": "length"}]})
            self._event({"choices": [], "usage": {"completion_tokens": self.count}})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            return  # the page left

    def _event(self, message: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(message).encode() + b"\n\n")
        self.wfile.flush()

    def _json(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def fake_service(folder: Path, gate: threading.Event | None = None) -> Iterator[type[FakeService]]:
    """A service that the fake `remote.forward` leads to."""
    handler = type("Handler", (FakeService,), {"seen": [], "gate": gate})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        (folder / "service").write_text(f"http://127.0.0.1:{server.server_address[1]}")
        with open(os.open(folder / "token", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(TOKEN)
        yield handler
        if gate is not None:
            gate.set()
        server.shutdown()
        thread.join()
