"""A machine that computes what each case expects, and whose clock runs by the bytes of its launches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kernels.case import Case
from kernels.spec import KernelSpec
from lean.bench.host_state import HostState
from lean.errors import GateError
from lean.toolchain.chip.machine import Placed

STEADY = HostState(
    at_utc="2026-07-25T12:00:00.000+00:00",
    cpu_mhz_min=None,
    cpu_mhz_mean=None,
    cpus=1,
    load_1min=None,
    throttle_counts={"package_throttle_count": 3},
    gpus=(),
    unread=(),
)
GBS, LAUNCH_S, TORCH_S = 100.0, 1e-6, 50e-6
Spoil = Callable[[KernelSpec, dict[str, Tensor]], None]


def hotter() -> Callable[[], HostState]:
    """Readings of a machine that throttled in between."""
    counts = iter((3, 4))
    return lambda: replace(STEADY, throttle_counts={"package_throttle_count": next(counts)})


class Clockwork:
    """`slow`: seconds more of a launch by kernel name; `spoil` changes what a launch left."""

    def __init__(
        self, sm: str = "sm_90", *, slow: dict[str, float] | None = None, spoil: Spoil | None = None
    ) -> None:
        self.device = torch.device("cpu")
        self.facts: dict[str, Any] = {"name": "a clockwork", "sm": sm, "cuda": "13.0"}
        self.cache_bytes = 1 << 16
        self.recorded: list[list[Placed]] = []
        self.works: list[int] = []
        self.slow, self.spoil = slow or {}, spoil
        self.broken_torch: str | None = None
        self.faults: set[str] = set()

    def load(self, spec: KernelSpec, cubin: bytes) -> Any:
        return spec.name

    def run(self, kernel: Any, spec: KernelSpec, case: Case, tensors: Sequence[Tensor]) -> None:
        if spec.name in self.faults:
            raise GateError("CUDA_ERROR_ILLEGAL_ADDRESS")
        arrays = dict(zip((array.name for array in spec.arrays), tensors, strict=True))
        expected = case.expected({name: tensor.clone() for name, tensor in arrays.items()})
        for name, wanted in expected.items():
            new = wanted.value.to(arrays[name].dtype)
            arrays[name].copy_(new if wanted.where is None else torch.where(wanted.where, new, arrays[name]))
        if self.spoil:
            self.spoil(spec, arrays)

    def scope(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def record(self, launches: Sequence[Placed]) -> Callable[[int], float]:
        self.recorded.append(list(launches))
        once = sum(self._takes(one.spec) for one in launches)
        return lambda count: count * once

    def record_torch(self, works: Sequence[Callable[[], Any]]) -> Callable[[int], float]:
        if self.broken_torch:
            raise GateError(self.broken_torch)
        self.works.append(len(works))
        works[0]()
        return lambda count: count * len(works) * TORCH_S

    def _takes(self, spec: KernelSpec) -> float:
        return LAUNCH_S + sum(a.nbytes for a in spec.arrays) / (GBS * 1e9) + self.slow.get(spec.name, 0.0)
