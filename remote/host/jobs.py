"""Long work on a host, from this side: start, follow, detach, re-attach, stop, clean. It needs none of us."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lean.errors import Interrupted, LeanError, NotReadyError, UnreachableError, from_document
from lean.jobs.store import JobStatus
from remote.host.python import HostPython
from remote.ssh.connection import HostConnection

POLL_S = 5.0  # how long one look waits on the host for news
LOOK_S = 0.2  # between two looks at a job that is waited for


class Detached(Interrupted):
    """The user stopped watching (Ctrl-C). The job goes on; the message says how to come back to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """How a followed job ended. `result` is the JSON document it printed, None when it printed none."""

    status: JobStatus
    result: dict[str, Any] | None

    def document(self, host: str) -> dict[str, Any]:
        """What a job that succeeded printed. Errors: `failure`."""
        failure = self.failure(host)
        if failure is not None:
            raise failure
        assert self.result is not None
        return self.result

    def failure(self, host: str) -> LeanError | None:
        """Why it did not succeed: the error its document describes, else one telling how it ended."""
        if self.result is not None and "error" in self.result:
            return from_document(self.result)
        if self.status.state == "stopped":
            return Interrupted(f"{host}: job {self.status.name!r} was stopped")
        if self.status.state != "exited" or self.result is None:
            return LeanError(
                f"{host}: job {self.status.name!r} {ending(self.status)}; its log is {self.status.log} there"
            )
        return None


class HostJobs:
    """The jobs of one host. `python` runs the runner; any release will do, and the jobs bring their own."""

    def __init__(self, connection: HostConnection, python: HostPython) -> None:
        self._connection, self.python = connection, python

    def start(self, name: str, argv: Sequence[str]) -> JobStatus:
        """Start `argv` as the job `name`.

        Errors: `PreflightError` naming the holder when one of that name runs; `Detached` on Ctrl-C.
        """
        try:
            return JobStatus.from_document(self._ask("start", name, "--", *argv))
        except KeyboardInterrupt:
            raise Detached(f"interrupted; job {name!r} may have started. {self._again(name)}") from None

    def start_program(self, name: str, module: str, *arguments: str) -> JobStatus:
        """`start` of a host program of the same release and interpreter."""
        return self.start(name, self.python.argv(module, *arguments))

    def status(self, name: str) -> JobStatus:
        """One job. Errors: `NotReadyError` when there is none of that name."""
        return JobStatus.from_document(self._ask("status", name))

    def list(self) -> tuple[JobStatus, ...]:
        """Every job, by name."""
        return tuple(JobStatus.from_document(item) for item in self._ask("list")["jobs"])

    def stop(self, name: str, *, grace_s: float = 10.0) -> JobStatus:
        """SIGTERM to the job's process group, SIGKILL after the grace period.

        A finished job is left as it is.
        """
        return JobStatus.from_document(self._ask("stop", "--grace", str(grace_s), name))

    def clean(self, *names: str) -> tuple[str, ...]:
        """Remove finished jobs with their logs. Errors: `PreflightError` when a named one still runs."""
        return tuple(self._ask("clean", *names)["removed"])

    def follow(
        self, name: str, on_line: Callable[[str], None], *, run: str | None = None, offset: int = 0
    ) -> JobEnd:
        """Hand over the log's lines from byte `offset` on until the job ends.

        Ctrl-C detaches: `Detached` says how to re-attach, and the job goes on. A lost link raises
        `UnreachableError` saying the same. `run`: the start that is meant. Errors: `NotReadyError` when it
        was started anew meanwhile.
        """
        rest = ""
        try:
            while True:
                tail = self._ask("tail", "--offset", str(offset), "--wait", str(POLL_S), name)
                status = JobStatus.from_document(tail["status"])
                if (run := run or status.run) != status.run:
                    raise NotReadyError(f"job {name!r} was started anew at {status.started}; follow that one")
                *lines, rest = (rest + tail["text"]).split("\n")
                for line in lines:
                    on_line(line)
                offset = tail["next_offset"]
                if tail["complete"]:
                    if rest:
                        on_line(rest)
                    return JobEnd(status=status, result=_mapping(tail["result"]))
        except KeyboardInterrupt:
            raise Detached(f"detached; job {name!r} goes on. {self._again(name)}") from None
        except UnreachableError as error:
            raise type(error)(f"{error}. Job {name!r} goes on without us. {self._again(name)}") from None

    def wait_for(self, name: str, ready: Callable[[JobStatus], bool], *, timeout_s: float) -> JobStatus:
        """Look at a job until `ready` says so.

        Errors: `NotReadyError` when it ended, or not within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                status = self.status(name)
                if ready(status):
                    return status
                if status.finished:
                    why = f"ended before it was ready: {ending(status)}"
                    raise NotReadyError(f"job {name!r} {why}; see {status.log}")
                if time.monotonic() >= deadline:
                    why = f"was not ready within {timeout_s:g} s"
                    raise NotReadyError(f"job {name!r} {why}; see {status.log}")
                time.sleep(LOOK_S)
        except KeyboardInterrupt:
            raise Detached(f"detached; job {name!r} goes on. {self._again(name)}") from None

    def _again(self, name: str) -> str:
        return f"Re-attach: invoke remote.jobs --host {self._connection.name} --follow {name}"

    def _ask(self, verb: str, *arguments: str) -> dict[str, Any]:
        return self._connection.run_json(
            self.python.argv("lean.jobs", verb, "--root", self._connection.host.root, *arguments)
        )


def ending(status: JobStatus) -> str:
    """How it ended, in words."""
    if status.reason is not None:
        return f"{status.state}: {status.reason}"
    if status.signal is not None:
        return f"was killed by signal {status.signal}"
    if status.exit_code == 0:
        return "ended without a result"
    return f"exited with {status.exit_code}" if status.exit_code is not None else status.state


def _mapping(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None
