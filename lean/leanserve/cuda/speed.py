"""How fast a chip reads, and each kernel of a decode step by itself: graphs replayed beside an idle runner.

A sample is many replays of one graph and one wait for the last of them, on the host's clock: a graph is
started while the one before it runs, so starting costs nothing, and the wait is shared by all replays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np

from kernels.driver import Device, Graph
from kernels.qwen3 import SLOTS
from kernels.read_bandwidth.spec import NAME
from kernels.spec import Launch
from lean.contracts import BenchProfile
from lean.errors import PackError
from lean.in_process import CACHE_BYTES, KernelSpeed, ReadBandwidth
from lean.leanserve.cuda.appliance import Appliance
from lean.leanserve.step_reads import KernelReads, step_reads

SAMPLES = 9
SAMPLE_S = 0.03
WARM_UP = 3  # replays before the first sample
LAUNCHES = 32  # at least, in a graph: fewer would take less time than the host needs to start it


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What reading alone reaches, and every kernel of a step beside it."""

    read_bandwidth: ReadBandwidth
    kernels: tuple[KernelSpeed, ...]


def measure_speed(appliance: Appliance, profile: BenchProfile) -> Speed:
    """Measure at the profile's batch and its mean length. No slot may hold a stream; none does afterwards.

    Errors: `PackError` for a pack of an older release, without the kernel that only reads.
    """
    reader = _Reader(appliance)
    bandwidth = reader.bandwidth()
    positions = profile.prompt_tokens + profile.decode_tokens // 2
    reads = step_reads(appliance.sizes, batch=profile.batch, positions=positions)
    try:
        kernels = tuple(
            _kernel(appliance, reader, own, bandwidth.gbs, positions, profile.batch) for own in reads
        )
    finally:
        appliance.write("positions", np.full(SLOTS, -1))
    return Speed(read_bandwidth=bandwidth, kernels=kernels)


class _Reader:
    """The reading kernel over windows of the weights, as they lie: no two overlap."""

    def __init__(self, appliance: Appliance) -> None:
        kernel = appliance.programs.kernels.get(NAME)
        if kernel is None:
            raise PackError(
                f"{appliance.pack.path}: kernel {NAME} is missing; pack it again with this release"
            )
        words, sums = kernel.arrays
        places = [
            place
            for first, size in appliance.weight_files()
            for place in range(first, first + size - words.nbytes + 1, words.nbytes)
        ]
        if not places:
            raise PackError(f"{appliance.pack.path}: no weight file holds the {words.nbytes} bytes of {NAME}")
        self._device, self._window_bytes = appliance.device, words.nbytes
        self._sums = self._device.empty(sums.shape, np.int32)
        windows = {f"window.{index}": place for index, place in enumerate(places)}
        self.programs = appliance.programs.beside(windows | {"sums": self._sums.pointer})
        self.passing = tuple(Launch(kernel=NAME, buffers=(window, "sums")) for window in windows)
        self.sweep = self.passing[: math.ceil(CACHE_BYTES / self._window_bytes)]
        self._sweep_s: float | None = None

    def bandwidth(self) -> ReadBandwidth:
        """Every window once a pass."""
        replays, seconds = _samples(self._device, self.programs.record(self.passing))
        read_bytes = len(self.passing) * self._window_bytes
        return ReadBandwidth(
            read_bytes=read_bytes,
            launches=len(self.passing),
            replays=replays,
            seconds=seconds,
            gbs=read_bytes / median(seconds) / 1e9,
        )

    def sweep_s(self) -> float:
        """Seconds that filling the caches takes by itself."""
        if self._sweep_s is None:
            self._sweep_s = median(_samples(self._device, self.programs.record(self.sweep))[1])
        return self._sweep_s


def _kernel(
    appliance: Appliance, reader: _Reader, reads: KernelReads, achievable: float, positions: int, batch: int
) -> KernelSpeed:
    """One kernel of the step. What it reads comes from memory, as it does between the other kernels."""
    swept = 0 < reads.read_bytes < CACHE_BYTES
    steps = 1 if swept else math.ceil(LAUNCHES / len(reads.launches))
    program = (*(reader.sweep if swept else ()), *reads.launches * steps)
    standing = np.full(SLOTS, -1)
    standing[:batch] = positions
    appliance.write("positions", standing)  # the kernel that chooses moves them on
    replays, seconds = _samples(appliance.device, reader.programs.record(program))
    beside = reader.sweep_s() if swept else 0.0
    alone = tuple((second - beside) / steps for second in seconds)
    step_s = median(alone)
    gbs = reads.read_bytes / step_s / 1e9 if reads.read_bytes and step_s > 0 else None
    return KernelSpeed(
        kernel=reads.kernel,
        launches=len(reads.launches),
        read_bytes=reads.read_bytes,
        replays=replays * steps,
        swept=swept,
        seconds=alone,
        step_s=step_s,
        gbs=gbs,
        share=None if gbs is None else gbs / achievable,
    )


def _samples(device: Device, graph: Graph) -> tuple[int, tuple[float, ...]]:
    """How many replays a sample has, and every sample's seconds a replay."""
    _timed(device, graph, WARM_UP)
    replays = max(WARM_UP, math.ceil(SAMPLE_S / max(_timed(device, graph, WARM_UP), 1e-6)))
    return replays, tuple(_timed(device, graph, replays) for _ in range(SAMPLES))


def _timed(device: Device, graph: Graph, replays: int) -> float:
    """Seconds a replay."""
    device.synchronise()
    before = perf_counter()
    for _ in range(replays):
        graph.launch()
    device.synchronise()
    return (perf_counter() - before) / replays
