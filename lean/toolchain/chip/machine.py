"""Where compiled kernels run: the protocol, and the first GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor

from kernels.case import Case
from kernels.spec import KernelSpec
from lean.errors import GateError, PreflightError
from lean.toolchain.chip.pace import Replay

MOST_CACHE_BYTES = 128 << 20  # where a torch does not say: more than any chip here has


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One launch of a loaded kernel on arrays that lie at `pointers`."""

    kernel: Any
    spec: KernelSpec
    grid: tuple[int, int, int]
    pointers: tuple[int, ...]


class Machine(Protocol):
    """Where kernels run."""

    device: torch.device
    facts: dict[str, Any]

    def load(self, spec: KernelSpec, cubin: bytes) -> Any:
        """Make a kernel ready. Errors: `GateError`."""

    def run(self, kernel: Any, spec: KernelSpec, case: Case, tensors: Sequence[Tensor]) -> None:
        """Launch it on tensors in the order of the specification, and return when it is over."""


class TimingMachine(Machine, Protocol):
    """A machine that also keeps time. `cache_bytes`: of its largest cache, as the driver has it."""

    cache_bytes: int

    def scope(self) -> contextlib.AbstractContextManager[None]:
        """What is recorded in the `with` block is given back at its end."""

    def record(self, launches: Sequence[Placed]) -> Replay:
        """The launches as one graph, each as soon as the one before lets it. Errors: `GateError`."""

    def record_torch(self, works: Sequence[Callable[[], Any]]) -> Replay:
        """What torch launches, as one graph. Errors: `GateError` with torch's own words."""


def open_gpu() -> TimingMachine:
    """The first GPU. Errors: `PreflightError` where there is none, or no driver."""
    from kernels import driver

    class Gpu:
        """Torch's tensors under the driver's launches; both use the device's primary context."""

        def __init__(self) -> None:
            self.device = torch.device("cuda", 0)
            torch.zeros(1, device=self.device)  # makes the primary context
            self._driver = driver.open_device()
            self.facts = asdict(self._driver.facts)
            known = getattr(torch.cuda.get_device_properties(self.device), "L2_cache_size", 0)
            self.cache_bytes = int(known) or MOST_CACHE_BYTES

        def load(self, spec: KernelSpec, cubin: bytes) -> Any:
            try:
                return self._driver.load(cubin).kernel(spec.symbol)
            except driver.DriverError as error:
                raise GateError(f"{spec.name}: {error}") from None

        def run(self, kernel: Any, spec: KernelSpec, case: Case, tensors: Sequence[Tensor]) -> None:
            arguments = [
                driver.Bound(tensor.data_ptr(), array.shape, array.strides)
                for tensor, array in zip(tensors, spec.arrays, strict=True)
            ]
            torch.cuda.synchronize()
            try:
                self._driver.launch(kernel, grid=case.grid or spec.grid, arguments=arguments)
                self._driver.synchronise()
            except driver.DriverError as error:
                raise GateError(str(error)) from None

        def scope(self) -> contextlib.AbstractContextManager[None]:
            scope: contextlib.AbstractContextManager[None] = self._driver.temporary()
            return scope

        def record(self, launches: Sequence[Placed]) -> Replay:
            torch.cuda.synchronize()
            try:
                with self._driver.capture() as graph:
                    for one in launches:
                        arguments = [
                            driver.Bound(pointer, array.shape, array.strides)
                            for pointer, array in zip(one.pointers, one.spec.arrays, strict=True)
                        ]
                        self._driver.launch(one.kernel, grid=one.grid, arguments=arguments, early=True)
            except driver.DriverError as error:
                raise GateError(str(error)) from None

            def replay(count: int) -> float:
                try:
                    before = perf_counter()
                    for _ in range(count):
                        graph.launch()
                    self._driver.synchronise()
                    return perf_counter() - before
                except driver.DriverError as error:
                    raise GateError(str(error)) from None

            return replay

        def record_torch(self, works: Sequence[Callable[[], Any]]) -> Replay:
            graph = torch.cuda.CUDAGraph()
            try:
                aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                aside.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(aside):  # libraries make their workspaces before the capture
                    for work in works[:3]:
                        work()
                torch.cuda.current_stream().wait_stream(aside)
                with torch.cuda.graph(graph):
                    for work in works:
                        work()
            except (RuntimeError, TypeError) as error:
                raise GateError(f"torch: {str(error).splitlines()[0]}") from None

            def replay(count: int) -> float:
                torch.cuda.synchronize()
                before = perf_counter()
                for _ in range(count):
                    graph.replay()
                torch.cuda.synchronize()
                return perf_counter() - before

            return replay

    try:
        return Gpu()
    except (driver.DriverError, RuntimeError, AssertionError) as error:  # the last: a torch without CUDA
        raise PreflightError(f"no GPU to prove kernels on: {error}") from None
