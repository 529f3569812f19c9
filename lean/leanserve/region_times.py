"""What decode steps spend where: a row a step, written beside a runner that was told to time them.

The file is JSON lines: a header, the rows in the order of the steps, and an end that counts them, so that a
lost row shows. A region's time goes from the end of the one before it, so what starting it costs is its own.
What lies between two steps is no region: it is the row's wait, kept apart, with what it waited behind.
Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TextIO

from lean.errors import PreflightError

SCHEMA = "step-times/v1"
TAXONOMY: Literal["decode-step/v1"] = (
    "decode-step/v1"  # what the names below mean; another list is another version
)
REGIONS = ("embedding", "qkv", "attention", "output", "gate_up", "down", "head", "choose")
After = Literal["start", "step", "prompt"]
"""What ran before a step: nothing that was timed, the step before it, or prompts since that one."""

_OF_KERNEL = {"split": "output", "sum": "output", "argmax": "choose", "greedy": "choose"} | {
    name: "choose" for name in ("search", "sampled")
}


def region_of(kernel: str) -> str:
    """The region of a kernel of the decode step, by its name. Errors: `KeyError` for one that has none."""
    name = kernel.partition(".")[0].rstrip("0123456789")
    return name if name in REGIONS else _OF_KERNEL[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """One step: `work_s` by `REGIONS`, and `wait_s` since the step before, in which nothing of it ran."""

    bucket: int
    choose: str
    after: After
    wait_s: float
    work_s: tuple[float, ...]


class RegionLog:
    """A file of step times. One thread writes; any thread closes it, once.

    A service goes on without it when the disk is full: it says so once, and the file has no end then, so that
    no reader takes it for whole. Errors: `PreflightError` when the file is there already or cannot be made.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.rows = 0
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("x", encoding="ascii")
            _put(self._file, {"schema": SCHEMA, "taxonomy": TAXONOMY, "regions": REGIONS, **about})
        except OSError as error:
            raise PreflightError(f"{path}: cannot be made: {error.strerror}") from None

    def write(self, step: StepTimes) -> None:
        """Add a row, unless the file is closed: then its end says how many there are."""
        assert len(step.work_s) == len(REGIONS)
        with self._lock, self._without_a_disk():
            if self._file is not None:
                _put(self._file, {"step": self.rows, **asdict(step)})
                self.rows += 1

    def close(self) -> None:
        """End the file with its count of rows."""
        with self._lock, self._without_a_disk():
            file, self._file = self._file, None
            if file is not None:
                with file:
                    _put(file, {"rows": self.rows})

    def abandon(self) -> None:
        """Close the file without an end: rows are lost, and it must not look whole."""
        with self._lock, self._without_a_disk():
            file, self._file = self._file, None
            if file is not None:
                file.close()

    @contextlib.contextmanager
    def _without_a_disk(self) -> Iterator[None]:
        """Give the file up where it cannot be written."""
        try:
            yield
        except OSError as error:
            file, self._file = self._file, None
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
            print(f"{self.path}: {error.strerror}; no further steps are timed", file=sys.stderr, flush=True)


def _put(file: TextIO, document: Mapping[str, Any]) -> None:
    file.write(json.dumps(document, separators=(",", ":")) + "\n")


class HostClock:
    """Times the steps of a runner that works on the host's own thread."""

    def __init__(self, log: RegionLog) -> None:
        self._log = log
        self._after: After = "start"
        self._ended = self._at = perf_counter()
        self._wait_s = 0.0
        self._work_s = dict.fromkeys(REGIONS, 0.0)

    def prompt_ran(self) -> None:
        """What the next step waited for was a prompt."""
        self._after = "start" if self._after == "start" else "prompt"

    def begin(self) -> Callable[[str], None]:
        """A step begins now; what it returns is called at the end of each region."""
        self._at = perf_counter()
        self._wait_s = 0.0 if self._after == "start" else self._at - self._ended
        self._work_s = dict.fromkeys(REGIONS, 0.0)
        return self._mark

    def end(self, bucket: int, choose: str) -> None:
        """The tokens are chosen."""
        self._mark("choose")
        self._ended = self._at
        self._log.write(
            StepTimes(
                bucket=bucket,
                choose=choose,
                after=self._after,
                wait_s=self._wait_s,
                work_s=tuple(self._work_s.values()),
            )
        )
        self._after = "step"

    def _mark(self, region: str) -> None:
        now = perf_counter()
        self._work_s[region] += now - self._at
        self._at = now
