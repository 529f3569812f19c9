"""Moving the bytes of one remote command: both outputs drained together, input fed beside, one deadline."""

from __future__ import annotations

import selectors
import threading
import time
from typing import Any

from lean.errors import UnreachableError

_CHUNK = 1 << 18
_HEARTBEAT_S = 1.0  # how often a silent command's deadline and Ctrl-C are looked at


def exchange(channel: Any, stdin: bytes, timeout: float | None, what: str) -> tuple[bytes, bytes]:
    """Feed `stdin` and collect what comes out and on stderr, until streams and command have ended.

    `timeout` in seconds. Errors: `UnreachableError` when it passes; whether the command still runs is then
    unknown.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    out, err = bytearray(), bytearray()
    feeder = threading.Thread(target=_feed, args=(channel, stdin), name="ssh-stdin", daemon=True)
    feeder.start()
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(channel, selectors.EVENT_READ)
            while not _ended(channel):
                left = _HEARTBEAT_S if deadline is None else min(_HEARTBEAT_S, deadline - time.monotonic())
                if left <= 0:
                    raise UnreachableError(
                        f"{what} did not end within {timeout:g} s; "
                        "it may still run on the host, look there before repeating it"
                    )
                # After its end of file a channel always reads as ready: only the command's end is awaited.
                if channel.eof_received:
                    channel.status_event.wait(left)
                else:
                    selector.select(left)
                while channel.recv_ready():
                    out += channel.recv(_CHUNK)
                while channel.recv_stderr_ready():
                    err += channel.recv_stderr(_CHUNK)
        return bytes(out), bytes(err)
    finally:
        channel.close()
        feeder.join()


def _feed(channel: Any, stdin: bytes) -> None:
    from paramiko import SSHException

    try:
        for start in range(0, len(stdin), _CHUNK):  # `sendall` copies the whole rest for every packet
            channel.sendall(stdin[start : start + _CHUNK])
        channel.shutdown_write()
    except (OSError, EOFError, SSHException):
        return  # the command closed its input or ended; its exit code tells the story


def _ended(channel: Any) -> bool:
    over = channel.closed or (channel.eof_received and channel.exit_status_ready())
    return over and not channel.recv_ready() and not channel.recv_stderr_ready()
