"""One compiled probe of the gate on the GPU, in a worker: poisoned output, guard bands, FP64 to compare."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.gate_probes.expected import expected, inputs, judge
from kernels.gate_probes.probes import Operand, Probe

GUARD = 4096  # bytes before and behind every array
POISON = 0xFF  # NaN in floats, -1 in integers


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One probe and its binary."""

    probe: Probe
    cubin: bytes


def run_probe(job: Job) -> dict[str, Any]:
    """Launch it once and compare. What is wrong is in `why`; `device_failed` says that the driver refused."""
    from kernels import driver

    start = time.monotonic()
    data = inputs(job.probe)
    try:
        with driver.open_device() as device:
            left = _launch(device, job, data)
    except driver.DriverError as error:
        spent = round(time.monotonic() - start, 3)
        return {"status": "blocked", "why": str(error), "run_seconds": spent, "device_failed": True}
    found = judged(job.probe, data, left)
    return found | {"run_seconds": round(time.monotonic() - start, 3)}


def spoilt(result: dict[str, Any]) -> bool:
    """Whether the worker's device is not to be trusted any more: it failed a launch."""
    return bool(result.get("device_failed"))


def guarded(operand: Operand, raw: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    """Bytes of an array between guard bands; what is not given is poison."""
    storage = np.full(operand.nbytes + 2 * GUARD, POISON, np.uint8)
    if raw is not None:
        storage[GUARD:-GUARD] = np.ascontiguousarray(raw).view(np.uint8).ravel()
    return storage


def judged(probe: Probe, data: dict[str, Any], left: dict[str, Any]) -> dict[str, Any]:
    """The verdict on what a launch `left` in each array's bytes, guard bands included."""
    from kernels.gate_probes.formats import RAW

    wrong = []
    for operand in probe.operands:
        before = guarded(operand, data.get(operand.name))
        after, output = left[operand.name], operand is probe.operands[-1]
        if (after[:GUARD] != POISON).any() or (after[-GUARD:] != POISON).any():
            wrong.append(f"{operand.name}: written outside the array")
        if not output and not np.array_equal(after, before):
            wrong.append(f"{operand.name}: an input was written")
    out = probe.operands[-1]
    got = left[out.name][GUARD:-GUARD].view(RAW[out.dtype]).reshape(out.shape)
    limits = judge(probe, got, expected(probe, data))
    if not limits["within"]:
        wrong.append(
            f"the result is off by {limits['norm']} of its norm, an element by {limits['element']}; "
            f"allowed are {limits['norm_limit']} and {limits['element_limit']}"
        )
    if wrong:
        return {"status": "blocked", "why": "it ran, but " + "; ".join(wrong), "limits": limits}
    return {"status": "cleared", "reached": "06_run", "why": "", "limits": limits}


def _launch(device: Any, job: Job, data: dict[str, Any]) -> dict[str, Any]:
    """Bytes of every array after the launch. Errors: `DriverError`."""
    from kernels.driver import Bound

    stored = {
        operand.name: device.upload(guarded(operand, data.get(operand.name)))
        for operand in job.probe.operands
    }
    arguments = [
        Bound(stored[operand.name].pointer + GUARD, operand.shape, operand.strides)
        for operand in job.probe.operands
    ]
    kernel = device.load(job.cubin).kernel(job.probe.symbol)
    device.launch(kernel, grid=(1, 1, 1), arguments=arguments)
    return {name: array.download() for name, array in stored.items()}
