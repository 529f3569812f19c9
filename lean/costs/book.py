"""A book at an address of this machine, for a benchmark program that wants one and would download it."""

from __future__ import annotations

import http.server
import pydoc_data.topics
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def serve_book() -> Iterator[str]:
    """The address of Python's own language reference, on a free port of 127.0.0.1, while the block runs."""
    text = "\n".join(pydoc_data.topics.topics.values()).encode()

    class Book(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Book) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/book.txt"
        finally:
            server.shutdown()
            thread.join()
