"""One candidate on the GPU, in a worker: its cases against FP64, its time, or one case and then its time."""

from __future__ import annotations

import time
from typing import Any

from kernels.case import Draw, cases_of
from lean.errors import GateError
from lean.toolchain.built import Kernel
from lean.toolchain.chip.machine import TimingMachine, open_gpu
from lean.toolchain.chip.pace import take_samples
from lean.toolchain.chip.trial import run_case
from lean.toolchain.speed.rotation import CACHES, rotate
from lean.toolchain.tune.job import Job


def run_candidate(job: Job) -> dict[str, Any]:
    """`passed`, with every sample where it was timed, `wrong` with what is, or `failed` and why."""
    machine = open_gpu()
    return prove_candidate(job, machine) if job.ask == "prove" else time_candidate(job, machine)


def prove_candidate(job: Job, machine: TimingMachine) -> dict[str, Any]:
    """Every case of its kernel, on a given machine; the first that fails ends it."""
    start = time.monotonic()
    ((_, spec),) = job.operation.launches
    kernel = Kernel(sizes="tune", spec=spec, cubin=job.cubin)
    cases = cases_of(spec)
    try:
        loaded = machine.load(spec, job.cubin)
        for case in cases:
            if problems := run_case(machine, loaded, kernel, case, {})["problems"]:
                reason = f"{case.name}: {'; '.join(problems)}"
                return {"status": "wrong", "reason": reason, "seconds": _since(start)}
    except (GateError, RuntimeError) as error:
        return _failed(error, start)
    return {"status": "passed", "cases": len(cases), "seconds": _since(start)}


def time_candidate(job: Job, machine: TimingMachine) -> dict[str, Any]:
    """Its time on a given machine, behind its first case where it is tried."""
    start = time.monotonic()
    ((launch, spec),) = job.operation.launches
    errors = {}
    try:
        loaded = machine.load(spec, job.cubin)
        if job.ask == "try":
            kernel = Kernel(sizes="tune", spec=spec, cubin=job.cubin)
            found = run_case(machine, loaded, kernel, cases_of(spec)[0], {})
            if found["problems"]:
                return {"status": "wrong", "reason": "; ".join(found["problems"]), "seconds": _since(start)}
            errors = {"errors": found["errors"]}
        with machine.scope():
            draw = Draw(job.seed, machine.device)
            least = CACHES * machine.cache_bytes
            turning = rotate(job.operation, job.sizes, job.rope_theta, draw, machine.device, least)
            replay = machine.record(turning.launches(job.operation, {launch.kernel: loaded}))
            samples = take_samples(replay, turning.copies * turning.rounds, job.pace)
    except (GateError, RuntimeError) as error:
        return _failed(error, start)
    rotated = {"rotated_bytes": turning.bytes, "seconds": _since(start)}
    return {"status": "passed", **errors, **samples.document(), **rotated}


def _failed(error: Exception, start: float) -> dict[str, Any]:
    """The driver's words, or torch's: no memory left, or a kernel failed."""
    reason = str(error).splitlines()[0]
    return {"status": "failed", "reason": reason, "device_failed": True, "seconds": _since(start)}


def _since(start: float) -> float:
    return round(time.monotonic() - start, 3)
