"""The byte stream under a connection: a TCP socket, or a proxy process behind a socket pair."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from typing import IO

from lean.errors import UnreachableError
from remote.ssh.openssh import error_in, one_line, proxy_argv
from remote.ssh.resolve import ResolvedHost
from remote.ssh.settings import SshSettings

PROXY_EXIT_S = 2.0


class ByteStream:
    """An open byte stream towards a host's SSH server, over TCP."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def explain(self) -> UnreachableError | None:
        """Why the stream broke, where something other than the socket knows."""
        return None

    def close(self) -> None:
        """Close the stream. Safe to call twice."""
        self.sock.close()


class ProxyStream(ByteStream):
    """A stream carried by a child process: `ssh -W` through a gateway, or the user's ProxyCommand."""

    def __init__(
        self, name: str, sock: socket.socket, child: subprocess.Popen[bytes], stderr: IO[bytes]
    ) -> None:
        super().__init__(sock)
        self._name = name
        self._child = child
        self._stderr = stderr

    def explain(self) -> UnreachableError | None:
        """The proxy's own last words, as the error they stand for."""
        self._end()
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace").strip()
        if not text:
            return None
        where = f"{self._name}: the gateway"
        return error_in(text, where) or UnreachableError(f"{where} gave up: {one_line(text)}")

    def close(self) -> None:
        """End the child, then close the stream. Safe to call twice."""
        super().close()
        self._end()
        self._stderr.close()

    def _end(self) -> None:
        self.sock.close()  # the child sees the end of its input and leaves by itself
        try:
            self._child.wait(PROXY_EXIT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def open_stream(resolved: ResolvedHost, settings: SshSettings) -> ByteStream:
    """Connect. Errors: `UnreachableError` naming the address and what to do."""
    argv = proxy_argv(resolved, settings)
    return _tcp(resolved, settings) if argv is None else _proxy(resolved.name, argv)


def _tcp(resolved: ResolvedHost, settings: SshSettings) -> ByteStream:
    where = f"{resolved.name}: {resolved.hostname}:{resolved.port}"
    try:
        sock = socket.create_connection((resolved.hostname, resolved.port), timeout=settings.connect_timeout)
    except socket.gaierror as error:
        raise UnreachableError(
            f"{where}: the name does not resolve ({error.strerror}); "
            "correct hostname, or give the host a `fallback` address"
        ) from None
    except TimeoutError:
        raise UnreachableError(
            f"{where}: no answer within {settings.connect_timeout:g} s; "
            "is it switched on and on this network?"
        ) from None
    except OSError as error:
        raise UnreachableError(
            f"{where}: {error.strerror or error}; is an SSH server running there, on this port?"
        ) from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: bytes unacknowledged for so long end the connection
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(settings.stall_timeout * 1000))
    return ByteStream(sock)


def _proxy(name: str, argv: list[str]) -> ByteStream:
    ours, theirs = socket.socketpair()
    stderr = tempfile.TemporaryFile()  # noqa: SIM115  the stream closes it
    end = theirs.fileno()
    try:
        # Its own session: Ctrl-C goes to us, and we close the connection in order.
        child = subprocess.Popen(argv, stdin=end, stdout=end, stderr=stderr, start_new_session=True)
    except OSError as error:
        ours.close()
        stderr.close()
        raise UnreachableError(f"{name}: the proxy {argv[0]} cannot be started: {error.strerror}") from None
    finally:
        theirs.close()
    return ProxyStream(name, ours, child, stderr)
