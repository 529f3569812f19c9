"""An open loop: measured requests are sent when they are due, whether or not others were answered.

A closed loop sends less while the service is slow, and so leaves out the requests that would have waited
(coordinated omission). Here the times are drawn before the first request goes out, and both are kept of each:
when it was due and when it was sent.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator

from lean.bench.sample import Sample
from lean.contracts import BenchProfile

# (stream, round, when it is due): the request, sent at once.
SendDue = Callable[[int, int, int], Awaitable[Sample]]


def offsets_ns(profile: BenchProfile) -> tuple[int, ...]:
    """When each measured request is due, in ns after the window began; the same for the same seed.

    `fixed`: the first at once, then every 1/rate s. `poisson`: each an exponential gap of mean 1/rate s after
    the one before, the first too.
    """
    arrivals = profile.arrivals
    assert arrivals.rate_per_s is not None
    gap_ns, count = 1e9 / arrivals.rate_per_s, profile.clients * profile.requests
    if arrivals.process == "fixed":
        return tuple(round(gap_ns * number) for number in range(count))
    draw = random.Random(profile.seed if arrivals.seed is None else arrivals.seed)
    gaps = (draw.expovariate(1.0) * gap_ns for _ in range(count))
    return tuple(round(due) for due in itertools.accumulate(gaps))


def places(profile: BenchProfile) -> Iterator[tuple[int, int]]:
    """(stream, round) of each measured request in the order they are due: places of its prompts, no more."""
    return ((stream, turn) for turn in range(profile.requests) for stream in range(profile.clients))


async def send_on_schedule(profile: BenchProfile, send: SendDue, clock_ns: Callable[[], int]) -> list[Sample]:
    """Send every measured request when it is due and wait for all answers.

    After one that failed, other than by a refusal, no more are sent: the run does not count, and the rest
    would only cost time.
    """
    begin = clock_ns()
    failed = asyncio.Event()

    async def one(stream: int, turn: int, due: int) -> Sample:
        sample = await send(stream, turn, due)
        if sample.error is not None and not sample.refused:
            failed.set()
        return sample

    in_flight: list[asyncio.Task[Sample]] = []
    for (stream, turn), offset in zip(places(profile), offsets_ns(profile), strict=True):
        await _until(begin + offset, clock_ns, failed)
        if failed.is_set():
            break
        in_flight.append(asyncio.create_task(one(stream, turn, begin + offset)))
    return list(await asyncio.gather(*in_flight))


async def _until(due: int, clock_ns: Callable[[], int], failed: asyncio.Event) -> None:
    """Sleep until the clock says `due`, or something failed."""
    while (left := due - clock_ns()) > 0 and not failed.is_set():
        try:
            await asyncio.wait_for(failed.wait(), left / 1e9)
        except TimeoutError:
            continue
    await asyncio.sleep(0)  # what is overdue goes out with no more delay than the answers that came meanwhile
