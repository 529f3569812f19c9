"""From the engine's worker thread to asyncio: one loop wake-up for however many events are waiting."""

from __future__ import annotations

import asyncio
from collections import deque

from lean.leanserve.request import Event


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


class Bridge:
    """Carries events into the loop that `attach` was called on."""

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
