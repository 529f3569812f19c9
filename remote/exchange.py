"""Moving the bytes of one remote command: both outputs drained together, input fed beside, one deadline."""

from __future__ import annotations

import selectors
import threading
import time
from collections.abc import Iterator
from typing import Any

from lean.errors import UnreachableError

_CHUNK = 1 << 18
_HEARTBEAT_S = 1.0  # how often a silent command's deadline and Ctrl-C are looked at

OUT, ERR = 1, 2


class Deadline:
    """A point in monotonic time, or never."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._at = None if seconds is None else time.monotonic() + seconds

    def left(self, most: float) -> float:
        """Seconds left, at most `most`, at least 0."""
        return most if self._at is None else max(0.0, min(most, self._at - time.monotonic()))

    @property
    def passed(self) -> bool:
        """Whether it is over."""
        return self._at is not None and time.monotonic() >= self._at


def exchange(channel: Any, stdin: bytes, deadline: Deadline, what: str) -> Iterator[tuple[int, bytes]]:
    """Yield `(OUT | ERR, bytes)` as they arrive, in the caller's thread, until streams and command ended.

    Errors: `UnreachableError` when the deadline passes; whether the command still runs is then unknown.
    """
    feeder = threading.Thread(target=_feed, args=(channel, stdin), name="ssh-stdin", daemon=True)
    feeder.start()
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(channel, selectors.EVENT_READ)
            while not deadline.passed:
                if (
                    channel.eof_received
                ):  # from now on the channel always reads as ready; only its end is awaited
                    channel.status_event.wait(deadline.left(_HEARTBEAT_S))
                else:
                    selector.select(deadline.left(_HEARTBEAT_S))
                yield from _arrived(channel)
                if _ended(channel):
                    return
        raise UnreachableError(
            f"{what} did not end within {deadline.seconds:g} s; "
            "it may still run on the host, look there before repeating it"
        )
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


def _arrived(channel: Any) -> Iterator[tuple[int, bytes]]:
    while channel.recv_ready():
        yield OUT, channel.recv(_CHUNK)
    while channel.recv_stderr_ready():
        yield ERR, channel.recv_stderr(_CHUNK)


def _ended(channel: Any) -> bool:
    over = channel.closed or (channel.eof_received and channel.exit_status_ready())
    return over and not channel.recv_ready() and not channel.recv_stderr_ready()
