"""The state of each host, as the verbs tell it; nothing is asked of a host while an operation runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from lean.errors import LeanError, NotReadyError
from remote.loopback import control
from remote.paths import LOOPBACK
from remote.ui.child import Child, Ended, Patience
from remote.ui.choices import Commands, HostChoice
from remote.ui.desk import ENDING, Desk

Reach = Literal["unknown", "down", "unreachable", "problem", "idle", "loading", "serving"]

_UNREACHABLE = 3
_NOT_READY = 6
_AT_ONCE = 2  # looks at hosts, each a Python process


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a host's service says of itself. `url` is on the host."""

    model: str
    contract: str
    lock: str
    runner: str
    slots: int | None
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """One host. `down`: the embedded host is not started. `message` is the command line's, with its fix.

    `jobs` are the names of the jobs that run there.
    """

    name: str
    state: Reach
    message: str = ""
    served: Served | None = None
    jobs: tuple[str, ...] = ()
    checked: str | None = None


class HostStates:
    """Looks at hosts with `remote.status` and `remote.jobs`, two hosts at once at most."""

    def __init__(
        self,
        commands: Commands,
        desk: Desk,
        embedded_runs: Callable[[], bool] = lambda: control.status(LOOPBACK).running,
        patience: Patience | None = None,
    ) -> None:
        self._commands = commands
        self._desk = desk
        self._embedded_runs = embedded_runs
        self._patience = patience or Patience(interrupt=2.0)
        self._known: dict[str, HostState] = {}
        self._looking: dict[str, asyncio.Task[HostState]] = {}
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def state(self, host: HostChoice) -> HostState:
        """How the host is now, or, while an operation runs, how it was last.

        Errors: `NotReadyError` when the page's server ends meanwhile.
        """
        if self._desk.busy:
            return self._known.get(host.name) or HostState(name=host.name, state="unknown")
        task = self._looking.get(host.name)
        if task is None or task.done():
            task = self._looking[host.name] = asyncio.create_task(self._look(host))
        await asyncio.wait({task})
        if task.cancelled():
            raise NotReadyError(ENDING)
        return task.result()

    async def close(self) -> None:
        """End the looks that are under way; afterwards none of their children is left."""
        looking = [task for task in self._looking.values() if not task.done()]
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)

    async def _look(self, host: HostChoice) -> HostState:
        async with self._turn:
            found = await self._found(host)
        self._known[host.name] = found
        return found

    async def _found(self, host: HostChoice) -> HostState:
        checked = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            if host.embedded and not await asyncio.to_thread(self._embedded_runs):
                return HostState(name=host.name, state="down", checked=checked)
            status = await self._run("remote.status", host)
            if status.exit_code not in (0, _NOT_READY):
                state: Reach = "unreachable" if status.exit_code == _UNREACHABLE else "problem"
                return HostState(name=host.name, state=state, message=status.message, checked=checked)
            jobs = _running(await self._run("remote.jobs", host))
        except (OSError, LeanError) as error:
            return HostState(name=host.name, state="problem", message=str(error), checked=checked)
        document = status.document if status.exit_code == 0 else {}
        served = _served(document) if document.get("ready") else None
        loading = not served and "serve" in jobs
        return HostState(
            name=host.name,
            state="serving" if served else "loading" if loading else "idle",
            served=served,
            jobs=jobs,
            checked=checked,
        )

    async def _run(self, verb: str, host: HostChoice) -> Ended:
        argv = self._commands.argv((verb, "--host", host.name))
        child = await Child.start(argv, self._commands.folder, patience=self._patience)
        try:
            return await child.ended()
        finally:
            if child.running:
                await child.stop()


def _served(document: dict[str, Any]) -> Served:
    runner = document.get("runner")
    facts = runner if isinstance(runner, dict) else {}
    slots = facts.get("slots")
    return Served(
        model=str(document.get("model", "")),
        contract=str(document.get("contract", "")),
        lock=str(document.get("lock", ""))[:8],
        runner=str(facts.get("name", "")),
        slots=slots if isinstance(slots, int) else None,
        url=str(document.get("url", "")),
    )


def _running(jobs: Ended) -> tuple[str, ...]:
    listed = jobs.document.get("jobs")
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    return tuple(sorted(str(row.get("name")) for row in rows if row.get("state") == "running"))
