"""Jobs in processes of their own, each with a time limit: one that crashes or hangs loses that job alone.

A compiler can die of a signal or never end, and so can its Python front end. Every worker is a fresh
interpreter with a session of its own, so that ending it also ends what it started.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
START_SECONDS = 60.0  # for a worker's imports, before the clock of its first job runs
_READY = "ready"
_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A job that left no result; `reason` says what became of its process. `seconds`: how long it had."""

    reason: str
    seconds: float


def run_jobs(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    seconds: float,
    finished: Callable[[int, Result | Lost], None] = lambda index, result: None,
    retire: Callable[[Result], bool] = lambda result: False,
) -> list[Result | Lost]:
    """`work(job)` of every job, in the order of `jobs`.

    `work` is a function of a module; jobs and results can be pickled. `seconds`: the limit of one job.
    `finished` hears of each as it ends. A worker whose result says `retire` gets no other job: what it holds
    may be spoilt.
    """
    results: dict[int, Result | Lost] = {}
    waiting = list(range(len(jobs)))[::-1]
    pool: list[_Worker] = []
    try:
        while len(results) < len(jobs):
            while waiting and len(pool) < max(workers, 1):
                pool.append(_Worker(work, seconds))
            for worker in pool:
                if worker.index is None and waiting:
                    number = waiting.pop()
                    worker.give(number, jobs[number])
            for worker, result in _ended(pool):
                index = worker.index
                assert index is not None
                worker.index = None
                results[index] = result
                if isinstance(result, Lost) or retire(result):
                    pool.remove(worker)
                    worker.end()
                finished(index, result)
    finally:
        for worker in pool:
            worker.end()
    return [results[index] for index in range(len(jobs))]


def _ended(pool: Sequence[_Worker]) -> Iterator[tuple[_Worker, Any]]:
    """Wait for the next worker that has a result, dies, or has had its time."""
    busy = [worker for worker in pool if worker.index is not None]
    ready = wait([worker.pipe for worker in busy], max(min(worker.left() for worker in busy), 0.0))
    for worker in busy:
        if worker.pipe in ready:
            try:
                result = worker.pipe.recv()
            except (EOFError, OSError):
                yield worker, worker.lost(worker.death())
                continue
            if isinstance(result, str) and result == _READY:
                worker.began()
            else:
                yield worker, result
        elif worker.left() <= 0:
            yield worker, worker.lost(f"it did not end within {worker.limit:g} s and was stopped")


class _Worker:
    """One process and the number of the job it has, if any."""

    def __init__(self, work: Callable[[Any], Any], limit: float) -> None:
        self.limit = limit
        self.index: int | None = None
        self.pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, work), daemon=True)
        self._process.start()
        theirs.close()
        self._since = time.monotonic()
        self._patience = START_SECONDS + limit

    def give(self, index: int, job: Any) -> None:
        """Start a job. A process that is gone shows at the next look at its pipe."""
        self.index = index
        self._since = time.monotonic()
        with contextlib.suppress(OSError):
            self.pipe.send(job)

    def began(self) -> None:
        """It has its imports behind it."""
        self._since, self._patience = time.monotonic(), self.limit

    def left(self) -> float:
        """Seconds of its time that are left."""
        return self._since + self._patience - time.monotonic()

    def lost(self, reason: str) -> Lost:
        return Lost(reason=reason, seconds=round(time.monotonic() - self._since, 3))

    def death(self) -> str:
        """How the process ended. What it had started is ended while its number is still its own."""
        wait([self._process.sentinel], 5.0)
        self._end_group()
        self._process.join(5.0)
        code = self._process.exitcode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"its process died of signal {-code} ({signal.Signals(-code).name})"
        return f"its process ended with code {code}"

    def end(self) -> None:
        """End the process and whatever it started."""
        self._end_group()
        self._process.kill()
        self._process.join()
        self.pipe.close()

    def _end_group(self) -> None:
        """End its session, also one whose leader has died, but not one whose leader was waited for."""
        pid = self._process.pid
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if pid is not None and os.getpgid(pid) == pid:  # its own session, not yet ours
                os.killpg(pid, signal.SIGKILL)


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """A worker: answers one job after another until the pipe closes. Only the parent writes to stdout."""
    os.setsid()
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        pipe.send(_READY)
        while True:
            job = pipe.recv()
            start = time.monotonic()
            try:
                result = work(job)
            except Exception as error:  # a bug of ours must not take the other jobs with it
                spent = round(time.monotonic() - start, 3)
                result = Lost(reason=f"{type(error).__name__}: {error}", seconds=spent)
            pipe.send(result)
