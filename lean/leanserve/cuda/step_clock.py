"""Times the regions of decode steps on the device: graphs with events between regions, read some steps later.

A step's graph is recorded `SETS` times, each with events of its own, which are used in turn. So a step is
read only when the third one behind it starts: the device never waits for the reading.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import groupby

from kernels.driver import Event, Graph
from lean.leanserve.cuda.appliance import Appliance, Choose
from lean.leanserve.region_times import REGIONS, After, RegionLog, StepTimes, region_of

SETS = 4  # steps whose events are not overwritten yet


@dataclass(frozen=True, slots=True, kw_only=True)
class _TimedGraph:
    """A step with an event before, between and behind its `regions`, in their order; layers repeat them."""

    graph: Graph
    regions: tuple[str, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    """A step on its way."""

    timed: _TimedGraph
    bucket: int
    choose: Choose
    after: After


class StepClock:
    """Starts steps instead of the appliance, and writes the times of each to the log, none left out."""

    def __init__(self, appliance: Appliance, log: RegionLog) -> None:
        self._appliance = appliance
        self._log = log
        self._graphs: dict[tuple[int, int, Choose], _TimedGraph] = {}
        self._started: deque[_Started] = deque()
        self._turn = 0
        self._ended: Event | None = None  # of the step that was read last
        self._after: After = "start"

    def decode(self, bucket: int, choose: Choose) -> None:
        """Start one step of `bucket` rows."""
        if len(self._started) == SETS - 1:
            self._read()
        key = (self._turn, bucket, choose)
        if key not in self._graphs:
            self._graphs[key] = self._record(bucket, choose)
        timed = self._graphs[key]
        timed.graph.launch()
        self._started.append(_Started(timed=timed, bucket=bucket, choose=choose, after=self._after))
        self._turn = (self._turn + 1) % SETS
        self._after = "step"

    def prompt_ran(self) -> None:
        """Between the last step and the next one lie prompts."""
        self._after = "start" if self._after == "start" else "prompt"

    def finish(self) -> None:
        """Write what is still on its way."""
        while self._started:
            self._read()

    def _record(self, bucket: int, choose: Choose) -> _TimedGraph:
        launches = self._appliance.decode_launches(bucket, choose)
        parts = [(region, tuple(own)) for region, own in groupby(launches, lambda one: region_of(one.kernel))]
        graph, events = self._appliance.programs.record_apart([own for _, own in parts])
        return _TimedGraph(graph=graph, regions=tuple(region for region, _ in parts), events=events)

    def _read(self) -> None:
        """The oldest step, once it is over."""
        step = self._started.popleft()
        events = step.timed.events
        events[-1].wait()
        work = dict.fromkeys(REGIONS, 0.0)
        for region, begin, end in zip(step.timed.regions, events, events[1:], strict=False):
            work[region] += end.seconds_since(begin)
        self._log.write(
            StepTimes(
                bucket=step.bucket,
                choose=step.choose,
                after=step.after,
                wait_s=0.0 if self._ended is None else events[0].seconds_since(self._ended),
                work_s=tuple(work.values()),
            )
        )
        self._ended = events[-1]
