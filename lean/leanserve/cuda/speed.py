"""How fast a chip reads, and each kernel of a decode step by itself: graphs replayed beside an idle runner.

A sample is many replays of one graph and one wait for the last of them, on the host's clock: a graph is
started while the one before it runs, so starting costs nothing, and the wait is shared by all replays.

A kernel that reads less than any cache holds would find its bytes there from the replay before. So a buffer
that is nobody's is read before each of its steps, and what that takes by itself is taken off. Kernels that
read more drive their own bytes out, layer by layer, and are replayed as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np

from kernels.driver import CudaError, Device, Graph
from kernels.qwen3 import SLOTS
from kernels.read_bandwidth.spec import NAME
from kernels.spec import Launch
from lean.contracts import BenchProfile
from lean.errors import PackError, PreflightError
from lean.in_process import CACHE_BYTES, KernelSpeed, ReadBandwidth
from lean.leanserve.cuda.appliance import Appliance
from lean.leanserve.step_reads import KernelReads, step_reads

SAMPLES = 9
SAMPLE_S = 0.03
WARM_UP = 3  # replays before the first sample
LAUNCHES = 32  # at least, in a graph: fewer would take less time than the host needs to start it


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What reading alone reaches, and every kernel of a step beside it; `sweep_bytes`: see `InProcess`."""

    read_bandwidth: ReadBandwidth
    kernels: tuple[KernelSpeed, ...]
    sweep_bytes: int


def measure_speed(appliance: Appliance, profile: BenchProfile) -> Speed:
    """Measure at the profile's batch and its mean length. No slot may hold a stream; none does afterwards.

    Errors: `PackError` for a pack of an older release, without the kernel that only reads; `PreflightError`
    where the buffer to sweep with does not fit beside the model.
    """
    positions = profile.prompt_tokens + profile.decode_tokens // 2
    reads = step_reads(appliance.sizes, batch=profile.batch, positions=positions, split_k=appliance.split_k)
    with appliance.device.temporary():
        reader = _Reader(appliance)
        bandwidth = reader.bandwidth()
        try:
            kernels = tuple(
                _kernel(appliance, reader, own, bandwidth.gbs, positions, profile.batch) for own in reads
            )
        finally:
            appliance.write("positions", np.full(SLOTS, -1))
    return Speed(read_bandwidth=bandwidth, kernels=kernels, sweep_bytes=reader.sweep_bytes)


class _Reader:
    """The reading kernel over windows of the weights, as they lie, and of a buffer larger than any cache.

    `passing` reads the weights, no two of its windows overlap; `sweep` reads all of the buffer.
    """

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
        self.sweep_bytes = max(CACHE_BYTES, words.nbytes)
        try:
            self._sums = self._device.empty(sums.shape, np.int32)
            self._swept = self._device.empty((self.sweep_bytes // 4,), np.int32)
        except CudaError as error:
            raise PreflightError(
                f"{self.sweep_bytes:,} bytes to sweep the caches with do not fit beside the model: {error}; "
                "stop what else runs there"
            ) from None
        windows = {f"window.{index}": place for index, place in enumerate(places)}
        starts = (*range(0, self.sweep_bytes - words.nbytes, words.nbytes), self.sweep_bytes - words.nbytes)
        sweeps = {f"sweep.{index}": self._swept.pointer + start for index, start in enumerate(starts)}
        self.programs = appliance.programs.beside(windows | sweeps | {"sums": self._sums.pointer})
        self.passing = tuple(Launch(kernel=NAME, buffers=(window, "sums")) for window in windows)
        self.sweep = tuple(Launch(kernel=NAME, buffers=(window, "sums")) for window in sweeps)
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
        """Seconds that reading the buffer takes by itself."""
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
