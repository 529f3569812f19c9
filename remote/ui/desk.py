"""One operation at a time: what runs now, what it says, and how the last one ended."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from lean.errors import NotReadyError, PreflightError
from remote.ui.child import Child, Ended, Patience
from remote.ui.choices import Commands, Order
from remote.ui.soak_progress import SoakProgress

State = Literal["running", "cancelling", "done", "invalid", "failed", "cancelled"]

KEPT_LINES = 2000
ENDING = "the page's server is ending; start it again with: invoke ui"
INVALID = 7  # exit code of a run that does not count
_QUEUE = 5000  # events a page may fall behind; then its stream ends and it connects anew
_SECRET = re.compile(r"(^|_)(token|key|secret|password)(_file)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation as the page sees it. `started` is UTC, `seconds` how long it has run or took.

    `facts` are the plain values of its document, `run` names the run directory that it left.
    """

    number: int
    kind: str
    title: str
    command: str
    host: str | None
    profile: str | None
    system: str | None
    plan: str | None
    state: State
    started: str
    seconds: float
    exit_code: int | None = None
    message: str = ""
    run: tuple[str, str, str] | None = None
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def live(self) -> bool:
        """Whether it has not ended."""
        return self.state in ("running", "cancelling")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something the page should know.

    `operation` with its document, `line` with one line of progress, or `progress` with all that its lines
    told so far.
    """

    name: Literal["operation", "line", "progress"]
    data: dict[str, Any]


class Desk:
    """Holds at most one operation that lives. To be made and used inside one event loop."""

    def __init__(self, commands: Commands, patience: Patience | None = None) -> None:
        self._commands = commands
        self._patience = patience or Patience()
        self._number = 0
        self._operation: Operation | None = None
        self._began = 0.0
        self._lines: deque[tuple[int, str]] = deque(maxlen=KEPT_LINES)
        self._said = 0
        self._progress: SoakProgress | None = None
        self._child: Child | None = None
        self._cancel: Callable[[], Awaitable[object]] | None = None
        self._work: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[object] | None = None
        self._watchers: set[asyncio.Queue[Event | None]] = set()
        self._closed = False

    @property
    def operation(self) -> Operation | None:
        """The one that lives, else the last one."""
        if self._operation is None or not self._operation.live:
            return self._operation
        return replace(self._operation, seconds=time.monotonic() - self._began)

    @property
    def busy(self) -> bool:
        """Whether an operation lives."""
        return self._operation is not None and self._operation.live

    async def begin(self, order: Order) -> Operation:
        """Start the order's verb. Errors: `PreflightError` while another one lives."""
        operation = self._take(order)
        try:
            child = await Child.start(
                self._commands.argv(order.words),
                self._commands.folder,
                on_line=self._hear,
                patience=self._patience,
            )
        except BaseException as error:
            self._finish("failed", message=f"{order.command} did not start: {error}")
            raise
        self._child, self._cancel = child, child.stop
        if self._closed:  # the page's server ended meanwhile
            self._stopping = asyncio.ensure_future(child.stop())
        self._work = asyncio.create_task(self._follow(child))
        return operation

    @contextlib.asynccontextmanager
    async def hold(self, order: Order, cancel: Callable[[], Awaitable[object]]) -> AsyncIterator[Operation]:
        """The desk for work of our own while the block runs. Errors: `PreflightError` while it is taken."""
        operation = self._take(order)
        self._cancel = cancel
        try:
            yield operation
        except BaseException as error:
            cancelled = isinstance(error, (asyncio.CancelledError, GeneratorExit))
            self._finish("cancelled" if cancelled else "failed", message="" if cancelled else str(error))
            raise
        cancelled = self._operation is not None and self._operation.state == "cancelling"
        self._finish("cancelled" if cancelled else "done")

    def cancel(self) -> Operation:
        """Ask the operation to end. Errors: `NotReadyError` when none lives."""
        now = self.operation
        if now is None or not now.live or self._cancel is None:
            raise NotReadyError("nothing runs; there is nothing to cancel")
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._cancel())
            self._operation = now = replace(now, state="cancelling")
            self._publish_operation()
        return now

    async def watch(self) -> AsyncIterator[Event | None]:
        """Everything so far, then everything new; None now and then, so that a page that left is noticed."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue(_QUEUE)
        now = self.operation
        if now is not None:
            queue.put_nowait(Event(name="operation", data=asdict(now)))
            if self._progress is not None:
                queue.put_nowait(_told(now.number, self._progress))
            for number, text in self._lines:
                queue.put_nowait(_line(now.number, number, text))
        self._watchers.add(queue)
        try:
            while queue in self._watchers and not self._closed:
                try:
                    yield await asyncio.wait_for(queue.get(), 10.0)
                except TimeoutError:
                    yield None
        finally:
            self._watchers.discard(queue)

    def end_watches(self) -> None:
        """Begin nothing more and let every `watch` end."""
        self._closed = True
        for queue in tuple(self._watchers):
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(None)

    def hurry(self) -> None:
        """SIGTERM for the child that is being stopped: whoever asks has pressed Ctrl-C twice."""
        if self._child is not None:
            self._child.signal_group(signal.SIGTERM)

    async def close(self) -> None:
        """Stop what lives; afterwards none of our children is left."""
        self.end_watches()
        if self.busy and self._cancel is not None:
            with contextlib.suppress(NotReadyError):
                self.cancel()
        waiting = [task for task in (self._stopping, self._work) if task is not None]
        await asyncio.gather(*waiting, return_exceptions=True)

    def _take(self, order: Order) -> Operation:
        if self._closed:
            raise NotReadyError(ENDING)
        if self._operation is not None and self._operation.live:
            raise PreflightError(
                f"one operation at a time: {self._operation.title!r} runs; wait for its end or cancel it"
            )
        self._number += 1
        self._began = time.monotonic()
        self._lines.clear()
        self._said = 0
        self._progress = order.progress
        self._child = self._cancel = self._work = self._stopping = None
        self._operation = Operation(
            number=self._number,
            kind=order.kind,
            title=order.title,
            command=order.command,
            host=order.host,
            profile=order.profile,
            system=order.system,
            plan=order.plan,
            state="running",
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=0.0,
        )
        self._publish_operation()
        if self._progress is not None:
            self._publish(_told(self._number, self._progress))
        return self._operation

    async def _follow(self, child: Child) -> None:
        ended = await child.ended()
        assert self._operation is not None
        asked = self._operation.state == "cancelling"
        self._finish(
            _state_of(ended, asked),
            exit_code=ended.exit_code,
            message=ended.message,
            run=_run_of(ended.document),
            facts=_facts_of(ended.document),
        )

    def _hear(self, text: str) -> None:
        self._said += 1
        self._lines.append((self._said, text))
        assert self._operation is not None
        self._publish(_line(self._operation.number, self._said, text))
        if self._progress is not None and self._progress.hear(text):
            self._publish(_told(self._operation.number, self._progress))

    def _finish(self, state: State, **found: Any) -> None:
        assert self._operation is not None
        self._operation = replace(
            self._operation, state=state, seconds=time.monotonic() - self._began, **found
        )
        self._publish_operation()

    def _publish_operation(self) -> None:
        now = self.operation
        assert now is not None
        self._publish(Event(name="operation", data=asdict(now)))

    def _publish(self, event: Event) -> None:
        for queue in tuple(self._watchers):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._watchers.discard(queue)


def _line(operation: int, number: int, text: str) -> Event:
    return Event(name="line", data={"operation": operation, "number": number, "text": text})


def _told(operation: int, progress: SoakProgress) -> Event:
    return Event(name="progress", data={"operation": operation, **progress.document()})


def _state_of(ended: Ended, asked: bool) -> State:
    if ended.exit_code == 0:
        return "done"
    if asked:
        return "cancelled"
    return "invalid" if ended.exit_code == INVALID else "failed"


def _run_of(document: dict[str, Any]) -> tuple[str, str, str] | None:
    """Host, profile and id of the run directory that a document names."""
    path = document.get("path")
    parts = path.split("/") if isinstance(path, str) else []
    return (parts[-3], parts[-2], parts[-1]) if len(parts) >= 4 and parts[-4] == "v1" else None


def _facts_of(document: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The plain values of a document; whatever may be or lead to a secret stays here."""
    plain = ((name, value) for name, value in document.items() if not _SECRET.search(name))
    return tuple((name, str(value)[:300]) for name, value in plain if isinstance(value, str | int | float))[
        :20
    ]
