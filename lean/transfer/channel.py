"""One JSON document a line, and raw bytes, over two pipes.

Every wait has a deadline, every end has a name.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any, ParamSpec, TypeVar

PIECE = 1 << 20  # bytes read, written or hashed at a time
BEAT_S = 1.0
LONGEST = 256 << 20  # bytes of one document; a listing takes about 100 a file

P = ParamSpec("P")
T = TypeVar("T")


class Refused(Exception):
    """One end will not go on. `kind` is the name of the `lean.errors` class it stands for."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def document(self) -> dict[str, Any]:
        """The form in which it travels."""
        return {"error": {"kind": self.kind, "message": str(self)}}


class ChannelError(Exception):
    """The other end went away, stopped answering, or speaks something else."""


class Channel:
    """Both directions of the conversation. `idle_s`: how long either direction may stand still.

    `counted` raw bytes were written or read so far, and `skipped` needed no sending; `on_count` hears both.
    Whoever keeps the other waiting sends pings.
    """

    def __init__(
        self, reader: int, writer: int, *, idle_s: float, on_count: Callable[[int], None] | None = None
    ) -> None:
        os.set_blocking(writer, False)
        for pipe in (reader, writer):
            _enlarge(pipe)
        self._reader, self._writer, self._idle_s = reader, writer, idle_s
        self._in, self._out = bytearray(), bytearray()
        self._sending = threading.RLock()  # a worker may speak while another thread beats
        self._spoke = time.monotonic()
        self._on_count = on_count
        self.counted = self.skipped = 0

    def send(self, document: dict[str, Any]) -> None:
        """Queue one document; it leaves with the next `flush` or when enough is queued."""
        with self._sending:
            self._out += json.dumps(document).encode() + b"\n"
            if len(self._out) >= PIECE:
                self.flush()

    def write(self, data: bytes) -> None:
        """Write raw bytes, small pieces together."""
        self._count(len(data))
        if len(self._out) + len(data) < PIECE:
            self._out += data
            return
        self.flush()
        self._push(data)

    def flush(self) -> None:
        """Write everything queued. Errors: `Refused` with the reason the other end left, `ChannelError`."""
        with self._sending:
            queued, self._out = self._out, bytearray()
            self._push(queued)

    def _push(self, data: bytes | bytearray) -> None:
        waiting = select.poll()
        waiting.register(self._writer, select.POLLOUT)
        view = memoryview(data)
        while view:
            if not waiting.poll(self._idle_s * 1000):
                raise ChannelError(f"nothing could be sent for {self._idle_s:g} s")
            try:
                view = view[os.write(self._writer, view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                self._hear_reason()
                raise ChannelError(f"the other end went away ({error.strerror})") from None
        self._spoke = time.monotonic()

    def receive(self) -> dict[str, Any]:
        """The next document, pings passed over. Errors: `Refused` when it is a refusal, `ChannelError`."""
        self.flush()
        while True:
            document = self._line()
            _check_refusal(document)
            if "ping" not in document:
                return document

    def read(self, size: int) -> bytes:
        """Between 1 and `size` raw bytes, whatever has come."""
        if self._in:
            data = bytes(memoryview(self._in)[: min(size, PIECE)])
            del self._in[: len(data)]
        else:
            data = self._arrived(min(size, PIECE))
        self._count(len(data))
        return data

    def skip(self, size: int) -> None:
        """Count bytes that the receiver had already."""
        self.skipped += size
        self._count(0)

    def _count(self, size: int) -> None:
        self.counted += size
        if self._on_count is not None:
            self._on_count(self.counted + self.skipped)

    def beat(self) -> None:
        """Tell the other end that work goes on, at most once a second."""
        if time.monotonic() - self._spoke >= BEAT_S:
            self.send({"ping": 1})
            self.flush()

    def wait(self, future: Future[T]) -> T:
        """What becomes of a future; the other end hears meanwhile that we live."""
        while not wait_for([future], BEAT_S).done:
            self.beat()
        return future.result()

    def beating(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something slow that has no loop of its own, such as fsync, and beat meanwhile."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        try:
            return self.wait(future)
        except (Refused, ChannelError):
            future.result()  # the work goes on to its end all the same: it may hold a lock
            raise

    def _hear_reason(self) -> None:
        try:
            while True:
                _check_refusal(self._line())
        except ChannelError:
            return

    def _line(self) -> dict[str, Any]:
        searched = 0
        while (end := self._in.find(b"\n", searched)) < 0:
            searched = len(self._in)
            if searched > LONGEST:
                raise ChannelError(f"the other end sent {searched} bytes without a line's end")
            self._in += self._arrived(PIECE)
        line = bytes(self._in[:end])
        del self._in[: end + 1]
        try:
            document = json.loads(line)
        except ValueError:
            raise ChannelError(f"the other end said {line[:80]!r}, which is no answer") from None
        if not isinstance(document, dict):
            raise ChannelError(f"the other end said {line[:80]!r}, which is no answer")
        return document

    def _arrived(self, size: int) -> bytes:
        waiting = select.poll()
        waiting.register(self._reader, select.POLLIN)
        if not waiting.poll(self._idle_s * 1000):
            raise ChannelError(f"no answer for {self._idle_s:g} s")
        data = os.read(self._reader, size)
        if not data:
            raise ChannelError("the other end went away")
        return data


def _check_refusal(document: dict[str, Any]) -> None:
    body = document.get("error")
    if isinstance(body, dict) and "kind" in body and "message" in body:
        raise Refused(str(body["kind"]), str(body["message"]))
    if body is not None:
        raise ChannelError(f"the other end refuses and says {str(body)[:80]!r}")


def _enlarge(pipe: int) -> None:
    """A bigger pipe means fewer switches between us and ssh; where the system refuses, the usual one does."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIECE)
