"""A service whose clock is the client's: it writes a chunk, and goes on once the client has timed it.

So the hand-computed times of a script and the record's are the same numbers, on a machine of any load.
"""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PATIENCE_S = 30.0  # only for a test that would hang


@dataclass(frozen=True)
class Chunk:
    """`tokens` tokens that are written `after_ns` after the chunk before, or after the request was sent."""

    after_ns: int
    tokens: int


@dataclass
class Lockstep:
    """The shared clock. `virtual`: it stands still between chunks; else it is the machine's.

    `wrote` and `timed`: per request, when each chunk was written, and when the client was known to have it.
    """

    chunks: tuple[Chunk, ...]
    virtual: bool
    now_ns: int = 1_000
    wrote: list[list[int]] = field(default_factory=list)
    timed: list[list[int]] = field(default_factory=list)
    read: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def clock_ns(self) -> int:
        """The client's clock; a reading is told to the service."""
        now = self.time_ns()
        self.read.release()
        return now

    def time_ns(self) -> int:
        return self.now_ns if self.virtual else time.perf_counter_ns()

    def was_read(self) -> None:
        assert self.read.acquire(timeout=PATIENCE_S), "the client never looked at its clock"


def _event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": choices} | more).encode() + b"\n\n"


@contextmanager
def serve(lockstep: Lockstep) -> Iterator[str]:
    """The address of the service on a free port of 127.0.0.1, for the time of the block."""

    class Service(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": "lockstep"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            lockstep.was_read()  # when it was sent
            wrote, timed = [], []
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            told = 0
            for number, chunk in enumerate(lockstep.chunks):
                told += chunk.tokens
                last = number == len(lockstep.chunks) - 1
                choice = {"text": "x" * chunk.tokens, "finish_reason": "length" if last else None}
                # No token ids: a chunk's tokens are known from usage alone.
                usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": told}
                lockstep.now_ns += chunk.after_ns
                wrote.append(lockstep.time_ns())
                self._send(_event([choice], usage=usage))
                lockstep.was_read()
                timed.append(lockstep.time_ns())
            lockstep.now_ns += 7_000_000  # the end of a stream is no token and must not count
            self._send(b"data: [DONE]\n\n")
            lockstep.was_read()
            lockstep.wrote.append(wrote)
            lockstep.timed.append(timed)
            self.wfile.write(b"0\r\n\r\n")
            lockstep.was_read()  # when it ended

        def _send(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
