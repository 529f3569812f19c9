"""The last stage: launch the compiled cubins on the GPU and compare with numpy in float64."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels import driver
from kernels.vector_add.cases import Case
from kernels.vector_add.kernel import SYMBOL
from lean.errors import GateError, PreflightError
from lean.toolchain.arguments import SEED
from lean.toolchain.verify.chain import Compiled

GUARD = 256
"""Elements behind the output that must stay NaN: a store past the end would land there."""

Vector = np.ndarray[Any, np.dtype[np.float32]]


class NoGpuHere(Exception):
    """There is no GPU or no driver; the text says which."""


def open_gpu(open_device: Callable[[], driver.Device] | None = None) -> driver.Device:
    """The first GPU. Errors: `NoGpuHere`; `PreflightError` when there is one that cannot be used."""
    try:
        return (open_device or driver.open_device)()
    except (driver.NoDriver, driver.NoGpu) as error:
        raise NoGpuHere(str(error)) from None
    except driver.DriverError as error:
        raise PreflightError(f"the GPU cannot be used: {error}; or leave it out with --gpu none") from None


def inputs(case: Case) -> tuple[Vector, Vector]:
    """Two float32 vectors [elements], the same for everyone: magnitudes from 2^-20 to 2^20, both signs."""
    random = np.random.default_rng(SEED)

    def vector() -> Vector:
        scale = np.exp2(random.uniform(-20, 20, case.elements))
        drawn: Vector = (random.standard_normal(case.elements) * scale).astype(np.float32)
        return drawn

    return vector(), vector()


def run_case(device: driver.Device, compiled: Compiled) -> dict[str, Any]:
    """Launch one cubin on poisoned output and judge it. Errors: `GateError` when the launch itself fails."""
    case = compiled.case
    a, b = inputs(case)
    poisoned = np.full(case.elements + GUARD, np.nan, np.float32)
    start = time.perf_counter()
    try:
        out = launch(device, compiled, a, b, poisoned)
    except driver.DriverError as error:
        raise GateError(f"05_run {SYMBOL}.{case.name}.{compiled.target}: {error}") from None
    seconds = round(time.perf_counter() - start, 3)
    return {"case": case.name, "target": compiled.target, "seconds": seconds} | judge(case, a, b, out)


def launch(device: driver.Device, compiled: Compiled, a: Vector, b: Vector, poisoned: Vector) -> Vector:
    """What the kernel leaves in `poisoned` [elements + GUARD] on the device."""
    case = compiled.case
    out = device.upload(poisoned)
    arguments = (device.upload(a), device.upload(b), out.first(case.elements))
    device.launch(device.load(compiled.cubin).kernel(SYMBOL), grid=case.grid, arguments=arguments)
    left: Vector = out.download()
    return left


def judge(case: Case, a: Vector, b: Vector, out: Vector) -> dict[str, Any]:
    """Compare `out` [elements + GUARD] with a + b in float64.

    Fails on NaN left inside, on NaN overwritten behind, and on an error above the case's tolerance. An
    infinite error is given as null.
    """
    result, behind = out[: case.elements].astype(np.float64), out[case.elements :]
    expected = a.astype(np.float64) + b.astype(np.float64)
    unwritten = int(np.isnan(result).sum())
    error = np.abs(result - expected) / np.maximum(np.abs(expected), np.finfo(np.float32).tiny)
    worst = float(np.max(error, where=~np.isnan(error), initial=0.0))
    past_end = int((~np.isnan(behind)).sum())
    passed = not unwritten and not past_end and worst <= case.relative_tolerance
    return {
        "status": "passed" if passed else "failed",
        "compared_with": "numpy float64",
        "elements": case.elements,
        "unwritten": unwritten,
        "written_past_end": past_end,
        "max_relative_error": worst if np.isfinite(worst) else None,
        "relative_tolerance": case.relative_tolerance,
    }
