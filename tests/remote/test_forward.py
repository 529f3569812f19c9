"""Forwards over both servers to a plain TCP server of the test's own."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lean.errors import NotReadyError, PreflightError
from remote.ssh.forward import Forward


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = self.path.encode() * 100_000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class Reverse(socketserver.StreamRequestHandler):
    """Answers only once the client has finished sending."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.read()[::-1])


@pytest.fixture
def page() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def reverse() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Reverse) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def fetch(url: str) -> bytes:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
        data: bytes = answer.read()
        return data


def forward_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("forward")]


def test_a_forwarded_port_reaches_the_service_and_closing_leaves_nothing(any_host: Any, page: int) -> None:
    with Forward(any_host.connect(), page) as forward:
        assert fetch(f"{forward.url}/abc") == b"/abc" * 100_000
        assert fetch(f"{forward.url}/d") == b"/d" * 100_000
        port = forward.port
    assert forward_threads() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_the_end_of_what_the_client_sends_is_passed_on(any_host: Any, reverse: int) -> None:
    data = bytes(range(256)) * 2000
    with (
        Forward(any_host.connect(), reverse) as forward,
        socket.create_connection(("127.0.0.1", forward.port), timeout=10) as client,
    ):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        got = b""
        while piece := client.recv(1 << 16):
            got += piece

    assert got == data[::-1]


def test_several_clients_at_once_are_kept_apart(any_host: Any, page: int) -> None:
    with Forward(any_host.connect(), page) as forward:
        answers: dict[str, bytes] = {}

        def ask(path: str) -> None:
            answers[path] = fetch(forward.url + path)

        threads = [threading.Thread(target=ask, args=(f"/{i}",)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert answers == {f"/{i}": f"/{i}".encode() * 100_000 for i in range(6)}


@pytest.mark.security("services and forwards listen on loopback only")
def test_it_listens_on_the_loopback_address_only(any_host: Any, page: int) -> None:
    with Forward(any_host.connect(), page) as forward:
        assert forward._listener.getsockname() == ("127.0.0.1", forward.port)


def test_a_port_that_is_taken_is_named(any_host: Any, page: int) -> None:
    with pytest.raises(PreflightError, match=f"port {page} of this machine is taken"):
        Forward(any_host.connect(), page, port=page)
    assert forward_threads() == []


def test_a_service_that_is_not_there_closes_the_client_and_says_so(any_host: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with (
            Forward(any_host.connect(), unused.getsockname()[1]) as forward,
            socket.create_connection(("127.0.0.1", forward.port), timeout=10) as client,
        ):
            assert client.recv(1) == b""
            failure = forward.failure

    assert isinstance(failure, NotReadyError)


def test_closing_ends_idle_connections_too(any_host: Any, reverse: int) -> None:
    with Forward(any_host.connect(), reverse) as forward:
        client = socket.create_connection(("127.0.0.1", forward.port), timeout=10)
        client.sendall(b"never finished")
    with client, contextlib.suppress(ConnectionResetError):  # closed all the same
        assert client.recv(1) == b""
    assert forward_threads() == []
