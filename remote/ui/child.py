"""A verb as a child process in a process group of its own: its progress, its one document, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PIECE = 1 << 16
_LINE_CHARACTERS = 2000
_LOOK_S = 0.02  # between two looks whether the process has ended
_ANSWER_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds that a child has to end after SIGINT, after SIGTERM, and to close its pipes when it ended."""

    interrupt: float = 40.0  # a measurement takes its service down first, and lets it drain
    terminate: float = 5.0
    pipes: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a verb ended. `message` is what the command line said of a failure, empty for none."""

    exit_code: int
    document: dict[str, Any]
    message: str


class Child:
    """Made by `start`. `on_line` hears each line of standard error as it comes."""

    def __init__(
        self, process: asyncio.subprocess.Process, on_line: Callable[[str], None], patience: Patience
    ) -> None:
        self._process = process
        self._on_line = on_line
        self._patience = patience
        self._answer = bytearray()
        self._answered: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._last_error = ""
        self._last_line = ""
        self._end = asyncio.create_task(self._follow())

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        folder: Path,
        *,
        on_line: Callable[[str], None] = lambda line: None,
        patience: Patience | None = None,
    ) -> Child:
        """Start `argv` in `folder`, with nothing on standard input."""
        asked_for_colour = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "PY_COLORS")
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=folder,
            env={name: value for name, value in os.environ.items() if name not in asked_for_colour},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        return cls(process, on_line, patience or Patience())

    @property
    def pid(self) -> int:
        """Of the process, and the number of its group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return not self._end.done()

    async def ended(self) -> Ended:
        """Wait for the end. Giving up the wait leaves the child running."""
        return await asyncio.shield(self._end)

    async def document(self) -> dict[str, Any] | None:
        """The document of a verb that answers and stays, as soon as it is whole; None when it ended first."""
        either: list[asyncio.Future[Any]] = [self._answered, self._end]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return self._answered.result() if self._answered.done() else None

    def interrupt(self) -> None:
        """Ctrl-C for the verb, which tells its own children."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGINT)

    async def stop(self) -> Ended:
        """SIGINT to the verb, then SIGTERM, then SIGKILL to its group; returns once it has ended."""
        self.interrupt()
        for seconds, sent in (
            (self._patience.interrupt, signal.SIGTERM),
            (self._patience.terminate, signal.SIGKILL),
        ):
            done, _ = await asyncio.wait({self._end}, timeout=seconds)
            if done:
                break
            self.signal_group(sent)
        return await self.ended()

    def signal_group(self, number: signal.Signals) -> None:
        """A signal for the whole group, only while its leader is ours to wait for."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _follow(self) -> Ended:
        reading = [asyncio.create_task(self._read_answer()), asyncio.create_task(self._read_lines())]
        # `Process.wait` would also wait for the pipes, and a grandchild that stays holds them.
        while self._process.returncode is None:
            await asyncio.sleep(_LOOK_S)
        code = self._process.returncode
        _, late = await asyncio.wait(reading, timeout=self._patience.pipes)
        for task in late:
            task.cancel()
        if late:
            self._process._transport.close()  # type: ignore[attr-defined]  # there is no public way
        exit_code = code if code >= 0 else 128 - code  # as a shell counts signals
        document = _parsed(self._answer) or {}
        return Ended(exit_code=exit_code, document=document, message=self._message(exit_code, document))

    def _message(self, exit_code: int, document: dict[str, Any]) -> str:
        error = document.get("error")
        if isinstance(error, dict) and error.get("message"):
            return str(error["message"])
        if exit_code == 0:
            return ""
        return self._last_error or self._last_line or f"it ended with exit code {exit_code} and no word"

    async def _read_answer(self) -> None:
        assert self._process.stdout is not None
        while piece := await self._process.stdout.read(_PIECE):
            if len(self._answer) < _ANSWER_BYTES:
                self._answer += piece
            if self._answer.endswith((b"}", b"}\n")) and not self._answered.done():
                document = _parsed(self._answer)
                if document is not None:
                    self._answered.set_result(document)

    async def _read_lines(self) -> None:
        assert self._process.stderr is not None
        pending = b""
        while piece := await self._process.stderr.read(_PIECE):
            *lines, pending = (pending + piece).split(b"\n")
            for line in lines:
                self._say(line)
            if len(pending) > _PIECE:
                self._say(pending)
                pending = b""
        if pending:
            self._say(pending)

    def _say(self, raw: bytes) -> None:
        text = raw.decode("utf-8", "replace").rstrip()[:_LINE_CHARACTERS]
        line = "".join(c if c.isprintable() else " " for c in text)
        if not line.strip():
            return
        self._last_line = line.strip()
        if line.startswith("error: "):
            self._last_error = line.removeprefix("error: ")
        self._on_line(line)


def _parsed(answer: bytearray) -> dict[str, Any] | None:
    try:
        document = json.loads(answer)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
