"""What the chip can do at most, measured in the same run: reading, and bf16 matrix products."""

from __future__ import annotations

import math
from typing import Any

import torch

from kernels.case import Draw
from kernels.read_bandwidth.spec import NAME
from lean.errors import GateError
from lean.toolchain.chip.machine import Placed, TimingMachine
from lean.toolchain.chip.pace import Pace, take_samples
from lean.toolchain.speed.binaries import Binary

SIDE = 8192  # of the square matrices: their product takes a millisecond and more on any chip here
WINDOWS = 8  # at least, that a pass reads


def read_bandwidth(
    machine: TimingMachine, binary: Binary, loaded: Any, least_bytes: int, pace: Pace, seed: int
) -> dict[str, Any]:
    """The reading kernel over windows of a buffer, none twice in a pass. GB/s are 1e9 bytes."""
    words, sums = binary.spec.arrays
    windows = max(WINDOWS, math.ceil(least_bytes / words.nbytes))
    draw = Draw(seed, machine.device)
    first = draw.integers(words, -(2**31), 2**31)
    buffer = first.view(1, -1).repeat(windows, 1)
    found = torch.empty(sums.shape, dtype=torch.int32, device=machine.device)
    launches = [
        Placed(
            kernel=loaded,
            spec=binary.spec,
            grid=binary.spec.grid,
            pointers=(buffer[window].data_ptr(), found.data_ptr()),
        )
        for window in range(windows)
    ]
    with machine.scope():
        samples = take_samples(machine.record(launches), 1, pace)
    read_bytes = windows * words.nbytes
    return {
        "status": "measured",
        "kernel": NAME,
        "read_bytes": read_bytes,
        "launches": windows,
        "gbs": round(read_bytes / samples.median_us / 1e3, 2),
        **samples.document(),
    }


def matrix_rate(machine: TimingMachine, pace: Pace, side: int = SIDE) -> dict[str, Any]:
    """A large bf16 product by torch. TFLOP/s are 1e12 multiplications and additions."""
    random = torch.Generator(machine.device).manual_seed(1)
    a, b = (
        torch.randn(side, side, generator=random, device=machine.device, dtype=torch.bfloat16)
        for _ in range(2)
    )
    try:
        samples = take_samples(machine.record_torch([lambda: a @ b] * 4), 4, pace)
    except GateError as error:
        return {"status": "missing", "reason": str(error)}
    return {
        "status": "measured",
        "product": f"torch, bf16 [{side}, {side}] times [{side}, {side}]",
        "tflops": round(2 * side**3 / samples.median_us / 1e6, 2),
        **samples.document(),
    }


def bound_us(
    bytes_moved: int, flops: int, reading: dict[str, Any], rate: dict[str, Any]
) -> tuple[str | None, float | None]:
    """Which limit an operation meets first, and the microseconds it needs at that limit at least.

    Without a measured matrix rate it is memory's; without a read bandwidth there is none.
    """
    if "gbs" not in reading:
        return None, None
    memory = bytes_moved / reading["gbs"] / 1e3
    matrix = flops / rate["tflops"] / 1e6 if "tflops" in rate else 0.0
    return ("memory", memory) if memory >= matrix else ("matrix", matrix)
