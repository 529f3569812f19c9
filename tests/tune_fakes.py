"""What workers do in tests of the search for tiles: candidates that are fast, slow, wrong, hang or crash."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolchain_fakes import behave

from lean.errors import PreflightError
from lean.toolchain.tune.job import Job
from lean.toolchain.tune.plan import Plan

GPU = {"name": "Some GPU", "sm": "sm_90", "driver_release": "580.1"}


def field(job: Job, name: str) -> int:
    ((_, spec),) = job.operation.launches
    return int(dict(spec.constants)[name])


def passed(us: float) -> dict[str, Any]:
    return {"status": "passed", "median_us": us, "samples_us": [us] * 7}


def run_by_width(job: Job) -> dict[str, Any]:
    """The wider the faster; those that would be the fastest fail, each in another way."""
    ((_, spec),) = job.operation.launches
    constants = dict(spec.constants)
    us = 20.0 - constants["WIDTH"] / 64
    match constants["STACK"], spec.occupancy:
        case 4, None:
            behave("crash")
        case 4, 2:
            behave("hang")
        case 4, _:
            return {"status": "failed", "reason": "CUDA_ERROR_ILLEGAL_ADDRESS", "device_failed": True}
        case 2, 3:
            return {"status": "wrong", "reason": "out: row 0 is off", "median_us": 0.1}
    return passed(us)


def run_evenly(job: Job) -> dict[str, Any]:
    return passed(10.0)


def run_current_lost(job: Job) -> dict[str, Any]:
    """A device that the current choice of qkv.one crashes."""
    if field(job, "ROWS") == 1:
        behave("crash")
    return passed(5.0)


def run_current_failed(job: Job) -> dict[str, Any]:
    """A device with too little memory for the current choice of qkv.one."""
    if field(job, "ROWS") == 1:
        return {"status": "failed", "reason": "CUDA out of memory", "device_failed": True}
    return passed(5.0)


def run_fastest_wrong_later(job: Job) -> dict[str, Any]:
    """The more rows the faster; the fastest is right on its first case only."""
    rows = field(job, "ROWS")
    if job.ask == "prove" and rows == 4:
        return {"status": "wrong", "reason": "second case: out: row 0 is off"}
    return {1: passed(10.0), 2: passed(8.0), 4: passed(4.0)}[rows]


def run_none_right_later(job: Job) -> dict[str, Any]:
    if job.ask == "prove":
        return {"status": "wrong", "reason": "second case: out: row 0 is off"}
    return passed(10.0)


def run_lucky_once(job: Job) -> dict[str, Any]:
    """The current choice has one row; those with four were fast the first time only."""
    rows = field(job, "ROWS")
    if rows == 4 and job.ask == "try":
        return passed(4.0)
    return passed({1: 10.0, 2: 8.0, 4: 11.0}[rows])


def run_lost_in_turn(job: Job) -> dict[str, Any]:
    """The fastest crash when they are timed again."""
    rows = field(job, "ROWS")
    if rows == 4 and job.ask == "time":
        behave("crash")
    return passed({1: 10.0, 2: 8.0, 4: 4.0}[rows])


def run_slowly(job: Job) -> dict[str, Any]:
    time.sleep(0.4)
    return passed(10.0)


def run_without_gpu(job: Job) -> dict[str, Any]:
    if field(job, "AHEAD") > 1:
        raise PreflightError("no GPU to prove kernels on: it fell off the bus")
    return passed(10.0)


def run_wrong(job: Job) -> dict[str, Any]:
    return {"status": "wrong", "reason": "out: row 0 is off"}


def compiled(refuse: Callable[[dict[str, Any]], bool] = lambda tile: False) -> Callable[..., Any]:
    """A compiler that refuses what `refuse` says of a tile, as one that spills."""

    def compile_plan(plan: Plan, shapes: Any, folder: Path, say: Any, *, workers: int) -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        entries: dict[str, Any] = {}
        for candidate in plan.all():
            if refuse(candidate.tile or {}):
                entries[candidate.digest] = {"status": "refused", "reason": "registers spill: 4 stores"}
                continue
            data = candidate.digest.encode()
            (folder / f"{candidate.digest}.cubin").write_bytes(data)
            entries[candidate.digest] = {"status": "compiled", "sha256": hashlib.sha256(data).hexdigest()}
        return entries

    return compile_plan


def no_gpu() -> dict[str, Any]:
    return {"status": "no GPU", "reason": "no GPU: libcuda cannot be loaded"}


def compile_job(job: Any) -> dict[str, Any]:
    """A compiler of one candidate: it crashes, hangs, spills or works, by the tile."""
    constants = dict(job.spec.constants)
    if constants["AHEAD"] == 2:
        behave("crash")
    if constants["AHEAD"] == 3:
        behave("hang")
    if constants["AHEAD"] == 4:
        return {"status": "refused", "reason": "registers spill: 4 stores and 4 loads"}
    return {"status": "compiled", "cubin": job.spec.name.encode(), "resources": {"registers": 32}}
