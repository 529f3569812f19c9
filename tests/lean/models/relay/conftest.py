"""An HTTP server that misbehaves on demand, and a relay whose two ends are joined by pipes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO, pattern

MIB = 1 << 20


@dataclass
class Origin:
    """What the server holds at `/file`, how it misbehaves, and what it was asked.

    `before(number)` is called ahead of every answer and may change anything. `cut`: bytes of a body after
    which the connection is dropped, for as many answers as it holds. `status`: codes to answer with first.
    """

    body: bytes
    url: str = ""
    etag: str | None = None
    ranges: bool = True
    lie: bool = False
    cut: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    before: Callable[[int], None] = lambda number: None
    asked: list[str | None] = field(default_factory=list)
    sent: int = 0
    moved_to: str | None = None
    credentials: list[str | None] = field(default_factory=list)

    @property
    def validator(self) -> str:
        """The ETag: the content's own hash unless it was fixed."""
        return self.etag if self.etag is not None else f'"{hashlib.sha256(self.body).hexdigest()[:16]}"'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    origin: Origin

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        origin = self.origin
        origin.before(len(origin.asked))
        requested = self.headers.get("Range")
        origin.asked.append(requested)
        origin.credentials.append(self.headers.get("Authorization") or self.headers.get("Cookie"))
        if origin.status:
            self.answer(origin.status.pop(0), b"", {})
        elif origin.moved_to is not None:
            self.answer(302, b"", {"Location": origin.moved_to})
        elif self.path.partition("?")[0] != "/file":
            self.answer(404, b"", {})
        else:
            self.file(requested)

    def file(self, requested: str | None) -> None:
        origin = self.origin
        headers = {"ETag": origin.validator} if origin.validator else {}
        condition = self.headers.get("If-Range")
        if requested is None or not origin.ranges or condition not in (None, origin.validator):
            self.answer(200, origin.body, headers)
            return
        first, _, last = requested.removeprefix("bytes=").partition("-")
        total, start = len(origin.body), int(first)
        if start >= total:
            self.answer(416, b"", {"Content-Range": f"bytes */{total}"})
            return
        end = min(int(last), total - 1)
        stated = f"bytes {start}-{end}/{total + (1 if origin.lie and start else 0)}"
        self.answer(206, origin.body[start : end + 1], {**headers, "Content-Range": stated})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if len(body) > 1 and self.origin.cut:
            body = body[: self.origin.cut.pop(0)]
            self.close_connection = True
        try:
            self.wfile.write(body)
            self.origin.sent += len(body)
        except OSError:
            self.close_connection = True


@pytest.fixture
def origin() -> Iterator[Origin]:
    held = Origin(body=pattern(40 * MIB + 123))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"origin": held}))
    server.daemon_threads = True
    held.url = f"http://127.0.0.1:{server.server_port}/file"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield held
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass(frozen=True)
class Ended:
    """How a relay ended: the sender's exit code and document, and the host end's exit code."""

    code: int
    document: dict[str, Any]
    host_code: int
    stderr: str


@dataclass(frozen=True)
class Relay:
    """Both ends as processes, joined by pipes where ssh would be."""

    folder: Path
    environment: dict[str, str]

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    def start(
        self, take: list[str], send: list[str], *, spool: int = 256 * MIB
    ) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
        (host_in, to_host), (from_host, host_out) = os.pipe(), os.pipe()
        program = [sys.executable, "-m", "lean.relay"]
        host = subprocess.Popen(
            [*program, *take, "--idle", "20"],
            cwd=REPO, stdin=host_in, stdout=host_out, stderr=subprocess.PIPE, text=True, env=self.environment,
        )  # fmt: skip
        sender = subprocess.Popen(
            [*program, "send", "--reader", str(from_host), "--writer", str(to_host), "--idle", "20",
             "--spool-folder", str(self.spool), "--spool", str(spool), *send],
            cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            pass_fds=(from_host, to_host), env=self.environment,
        )  # fmt: skip
        for end in (host_in, to_host, from_host, host_out):
            os.close(end)
        return sender, host

    def run(self, take: list[str], send: list[str], *, spool: int = 256 * MIB) -> Ended:
        sender, host = self.start(take, send, spool=spool)
        printed, words = sender.communicate(timeout=120)
        host.communicate(timeout=60)
        return Ended(sender.returncode, json.loads(printed), host.returncode, words)

    def file(self, url: str, target: Path, *more: str, spool: int = 256 * MIB) -> Ended:
        return self.run(["take-file", f"--target={target}", *more], [f"--url={url}"], spool=spool)


@pytest.fixture
def relay(tmp_path: Path) -> Relay:
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        kept.pop(name, None)
    (tmp_path / "laptop").mkdir()
    return Relay(tmp_path / "laptop", kept | {"HF_HOME": str(tmp_path / "hf")})
