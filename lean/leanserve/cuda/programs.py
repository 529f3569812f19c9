"""A pack's kernels bound to device memory: programs of launches, recorded once as graphs and replayed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kernels.driver import Bound, Device, Event, Graph
from kernels.spec import Array, KernelSpec, Launch


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedKernel:
    """One kernel on the device, with the shapes it was compiled for and its own grid."""

    handle: Any
    arrays: tuple[Array, ...]
    grid: tuple[int, int, int]


def load_kernel(device: Device, spec: KernelSpec, cubin: bytes) -> LoadedKernel:
    """Load one cubin. Errors: `CudaError` when it is for another chip or damaged."""
    return LoadedKernel(handle=device.load(cubin).kernel(spec.symbol), arrays=spec.arrays, grid=spec.grid)


class Programs:
    """Runs launches by name. `pointers`: where each buffer and weight lies on the device."""

    def __init__(
        self, device: Device, kernels: Mapping[str, LoadedKernel], pointers: Mapping[str, int]
    ) -> None:
        self._device = device
        self.kernels = kernels
        self._pointers = pointers

    def beside(self, pointers: Mapping[str, int]) -> Programs:
        """The same kernels and places, and more places."""
        return Programs(self._device, self.kernels, {**self._pointers, **pointers})

    def run(self, program: Iterable[Launch], *, early: bool = True) -> None:
        """Start every launch, each as soon as the one before lets it, or, unless `early`, has ended."""
        for launch in program:
            kernel = self.kernels[launch.kernel]
            arguments = [
                Bound(self._pointers[name], array.shape, array.strides)
                for name, array in zip(launch.buffers, kernel.arrays, strict=True)
            ]
            self._device.launch(
                kernel.handle, grid=launch.grid or kernel.grid, arguments=arguments, early=early
            )

    def record(self, program: Iterable[Launch]) -> Graph:
        """The program as one graph."""
        with self._device.capture() as graph:
            self.run(program)
        return graph

    def record_apart(self, parts: Sequence[Iterable[Launch]]) -> tuple[Graph, tuple[Event, ...]]:
        """The parts as one graph, each behind the other's end, and the moments before, between and behind."""
        events = tuple(self._device.timed_event() for _ in range(len(parts) + 1))
        with self._device.capture() as graph:
            events[0].record_in_graph(self._device.stream)
            for part, end in zip(parts, events[1:], strict=True):
                self.run(part, early=False)
                end.record_in_graph(self._device.stream)
        return graph, events
