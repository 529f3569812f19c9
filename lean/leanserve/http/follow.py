"""A stream and the client that waits for it: whichever ends first ends the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lean.leanserve.engine import Engine
from lean.leanserve.http.errors import from_refusal
from lean.leanserve.http.responses import DONE, Answer, server_sent_event
from lean.leanserve.request import Event, Failed, Generated
from lean.leanserve.stream import Stream

# nginx's status for a client that closed before its answer; nobody receives it, only the metrics count it.
CLIENT_GONE = 499


class Bridge:
    """From the engine's thread into the loop that `attach` was called on.

    One wake-up of the loop brings however many events are waiting.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[Mailbox, Event | None]] = deque()
        self._woken = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self) -> None:
        """Deliver into the running loop from now on."""
        self._loop = asyncio.get_running_loop()

    def post(self, mailbox: Mailbox, event: Event | None) -> None:
        """Queue an event for a mailbox, from any thread."""
        self._pending.append((mailbox, event))
        loop = self._loop
        if not self._woken and loop is not None and not loop.is_closed():
            self._woken = True
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first, so that an event posted from here on wakes the loop again
        while self._pending:
            mailbox, event = self._pending.popleft()
            mailbox.queue.put_nowait(event)


class Mailbox:
    """The events of one stream, in order. None means that the client is gone and nobody will read an answer.

    It holds at most one event per generated token, so a slow reader costs at most `max_tokens` small records.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue()

    def post(self, event: Event | None) -> None:
        """Add an event, from any thread, without blocking."""
        self._bridge.post(self, event)

    async def get(self) -> Event | None:
        """The next event."""
        return await self.queue.get()


class Follow:
    """Follows one stream for one client."""

    def __init__(self, engine: Engine, stream: Stream, receive: Receive, mailbox: Mailbox) -> None:
        self._engine = engine
        self._stream = stream
        self._mailbox = mailbox
        self._watcher = asyncio.create_task(_watch(receive, mailbox))

    async def whole(self, answer: Answer) -> Response:
        """The answer in one document, once the stream has finished."""
        try:
            events: list[Generated] = []
            while not events or events[-1].finish is None:
                event = await self._mailbox.get()
                if event is None:
                    return Response(status_code=CLIENT_GONE)
                events.append(_generated(event))
            return JSONResponse(answer.whole(events))
        finally:
            self._close()

    async def events(self, answer: Answer) -> Response:
        """The answer as server-sent events, from the first token on: an early failure has its own status."""
        try:
            event = await self._mailbox.get()
            if event is None:
                self._close()
                return Response(status_code=CLIENT_GONE)
            return EventStream(self._chunks(_generated(event), answer), self._close)
        except BaseException:
            self._close()
            raise

    async def _chunks(self, event: Event | None, answer: Answer) -> AsyncIterator[bytes]:
        while isinstance(event, Generated):
            document = answer.chunk(event)
            if document is not None:
                yield server_sent_event(document)
            if event.finish is not None:
                if answer.options.include_usage:
                    yield server_sent_event(answer.usage_chunk())
                yield DONE
                return
            event = await self._mailbox.get()
        if isinstance(event, Failed):
            yield server_sent_event(from_refusal(event.refusal).document())

    def _close(self) -> None:
        self._watcher.cancel()
        self._engine.cancel(self._stream)


def _generated(event: Event) -> Generated:
    if isinstance(event, Failed):
        raise from_refusal(event.refusal)
    return event


async def _watch(receive: Receive, mailbox: Mailbox) -> None:
    """Tell the mailbox when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    mailbox.post(None)


class EventStream(Response):
    """Sends the chunks as they come, waiting for a slow reader, and calls `close` however it ends."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self._chunks = chunks
        self._close = close
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the response."""
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()
