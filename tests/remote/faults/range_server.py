"""`range_server.py FILE`: one file over HTTP with ranges, on a port of 127.0.0.1 that is printed first."""

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        size = os.path.getsize(sys.argv[1])
        first, last = 0, size - 1
        asked = self.headers.get("Range")
        if asked:
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(stop), size - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        try:
            with open(sys.argv[1], "rb") as file:
                while first <= last:
                    first += os.sendfile(self.connection.fileno(), file.fileno(), first, last - first + 1)
        except OSError:
            self.close_connection = True


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
