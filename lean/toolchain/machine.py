"""Where compiled kernels run: the protocol, and the first GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor

from kernels.case import Case
from kernels.spec import KernelSpec
from lean.errors import GateError, PreflightError


class Machine(Protocol):
    """Where kernels run."""

    device: torch.device
    facts: dict[str, Any]

    def load(self, spec: KernelSpec, cubin: bytes) -> Any:
        """Make a kernel ready. Errors: `GateError`."""

    def run(self, kernel: Any, spec: KernelSpec, case: Case, tensors: Sequence[Tensor]) -> None:
        """Launch it on tensors in the order of the specification, and return when it is over."""


def open_gpu() -> Machine:
    """The first GPU. Errors: `PreflightError` where there is none, or no driver."""
    from kernels import driver

    class Gpu:
        """Torch's tensors under the driver's launches; both use the device's primary context."""

        def __init__(self) -> None:
            self.device = torch.device("cuda", 0)
            torch.zeros(1, device=self.device)  # makes the primary context
            self._driver = driver.open_device()
            self.facts = asdict(self._driver.facts)

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

    try:
        return Gpu()
    except (driver.DriverError, RuntimeError, AssertionError) as error:  # the last: a torch without CUDA
        raise PreflightError(f"no GPU to prove kernels on: {error}") from None
