"""The listening socket and the ready file: how the service is found."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

from lean.errors import PreflightError
from lean.files.staging import replace_file

HOST = "127.0.0.1"
BACKLOG = 128


def bind(port: int, *, send_seconds: float) -> socket.socket:
    """A socket bound to 127.0.0.1, not listening yet; port 0 takes a free one.

    A client that takes nothing of its answer for `send_seconds` is cut by the kernel (TCP_USER_TIMEOUT, which
    accepted connections inherit). Errors: `PreflightError` naming the port and the fix.
    """
    # With the protocol named, asyncio sees TCP and sets TCP_NODELAY on what it accepts: 40 ms a small answer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(send_seconds * 1000))
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise _port_error(port, error) from error
    return listener


def listen(listener: socket.socket) -> int:
    """Start listening; the port. Errors: `PreflightError` when another process listens there already."""
    port = int(listener.getsockname()[1])
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _port_error(port, error) from error
    return port


def _port_error(port: int, error: OSError) -> PreflightError:
    where = f"{HOST}:{port}"
    if error.errno == errno.EADDRINUSE:
        return PreflightError(
            f"port {where} is in use; stop what listens there, or use --port 0 for a free one"
        )
    return PreflightError(f"port {where}: {error.strerror}; use --port 0 for a free one")


class ReadyFile:
    """Exists exactly while the service is ready: appears whole, after the first token; goes at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def clear(self) -> None:
        """Remove the file, of an earlier process too. Errors: `PreflightError`."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise PreflightError(f"ready file {self._path}: {error.strerror}") from error

    def check(self) -> None:
        """Touch nothing. Errors: `PreflightError` when it could not be written later."""
        if not os.access(self._path.parent, os.W_OK | os.X_OK):
            raise PreflightError(
                f"ready file {self._path}: its directory is missing or not writable; create it"
            )

    def write(self, document: dict[str, Any]) -> None:
        """Write it whole. Errors: `PreflightError` (a full disk), with nothing left behind."""
        try:
            replace_file(self._path, json.dumps(document, indent=1, sort_keys=True))
        except OSError as error:
            raise PreflightError(f"ready file {self._path}: {error.strerror}") from error
