"""A port of the host as a port of this machine: 127.0.0.1 only, over the connection that is there already."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from types import TracebackType
from typing import Any, NoReturn

from lean.errors import LeanError, PreflightError
from remote.ssh.connection import HostConnection

_PIECE = 1 << 16
_TICK_S = 0.5  # how soon the threads notice that the forward was closed


class Forward:
    """Context manager. `port` here leads to `remote_port` on the host's own 127.0.0.1.

    Connections to it are accepted from this machine only. A connection that the host refuses is closed, and
    `failure` then holds why. After `close` no thread and no socket is left.
    """

    def __init__(self, connection: HostConnection, remote_port: int, *, port: int = 0) -> None:
        """`port` 0 takes a free one.

        Errors: `PreflightError` when the port is taken, those of `connection.open`.
        """
        connection.open()
        self._connection, self.remote_port = connection, remote_port
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._failure: LeanError | None = None
        self._listener = _listen(port)
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, name="forward-accept", daemon=True)
        self._accepting.start()

    def __enter__(self) -> Forward:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def failure(self) -> LeanError | None:
        """Why the latest connection could not be carried, None when it could."""
        with self._lock:
            return self._failure

    def hold(self) -> NoReturn:
        """Stay until a connection could not be carried, and raise why; Ctrl-C is the other way out."""
        while self.failure is None:
            time.sleep(_TICK_S)
        raise self.failure

    def close(self) -> None:
        """Close the port and every connection through it. Safe to call twice."""
        self._closing.set()
        self._accepting.join()
        self._listener.close()
        with self._lock:
            threads = tuple(self._threads)
        for thread in threads:
            thread.join()

    def _accept(self) -> None:
        while not self._closing.is_set():
            if not select.select([self._listener], [], [], _TICK_S)[0]:
                continue
            try:
                client, _ = self._listener.accept()
            except OSError:  # gone between select and accept
                continue
            thread = threading.Thread(target=self._carry, args=(client,), name="forward", daemon=True)
            with self._lock:
                self._threads = [t for t in self._threads if t.is_alive()] + [thread]
            thread.start()

    def _carry(self, client: socket.socket) -> None:
        with client:
            try:
                channel = self._connection.open_channel("direct-tcpip", ("127.0.0.1", self.remote_port))
            except LeanError as error:
                self._note(error)
                return
            self._note(None)
            try:
                self._pump(client, channel)
            except OSError:
                return  # either side went away; both are closed below
            finally:
                channel.close()

    def _note(self, failure: LeanError | None) -> None:
        with self._lock:
            self._failure = failure

    def _pump(self, client: socket.socket, channel: Any) -> None:
        client.settimeout(self._connection.settings.stall_timeout)
        channel.settimeout(self._connection.settings.stall_timeout)
        reading: list[Any] = [client, channel]
        while not self._closing.is_set() and (channel in reading or (reading and not channel.closed)):
            for source in select.select(reading, [], [], _TICK_S)[0]:
                other = channel if source is client else client
                data = source.recv(_PIECE)
                if data:
                    other.sendall(data)
                    continue
                reading.remove(source)
                with contextlib.suppress(OSError):
                    other.shutdown(socket.SHUT_WR)


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise PreflightError(
            f"port {port} of this machine is taken ({error.strerror}); choose another, or 0"
        ) from None
    return listener
