"""What workers do in tests of the toolchain: compilers and devices that crash, hang, refuse or answer."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kernels.gate_probes.expected import expected, inputs
from kernels.gate_probes.formats import encode

SPILLED = {"registers": 255, "shared_bytes": 16, "stack_bytes": 8, "local_bytes": 0}
FACTS = {"matrix": ["HMMA"], "matrix_forms": ["HMMA.16816"], "loads": ["LDG"], "widest_load": 16}


def double(job: int) -> int:
    return 2 * job


def behave(job: str) -> str:
    """`crash`, `hang`, `orphan`, `raise`, `exit`; anything else comes back with the process it ran in."""
    if job == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job.startswith(("hang", "orphan")):
        _, _, file = job.partition(" ")
        if file:  # a tool of its own, as a compiler starts them
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            Path(file).write_text(str(child.pid))
        if job.startswith("orphan"):
            behave("crash")
        time.sleep(600)
    if job == "raise":
        raise ValueError("a bug")
    if job == "exit":
        os._exit(3)
    return f"{job} {os.getpid()}"


def compile_cell(job: Any) -> dict[str, Any]:
    """A compiler for `portability` that dies on one kernel, hangs on another and refuses a third."""
    name = job.spec.name
    if name == "qkv.one":
        behave("crash")
    if name == "head.one":
        behave("hang")
    if name == "down.one":
        return {"status": "refused", "why": "error: no such tile", "stage": "cubin", "seconds": 0.1}
    spills = 4 if name == "output.one" else 0
    why = f"registers spill: {spills} stores and {spills} loads" if spills else ""
    status = "does-not-fit" if spills else "ok"
    used = SPILLED | {"spill_stores": spills, "spill_loads": spills}
    return {"status": status, "why": why, "seconds": 0.1, **used, **FACTS}


def compile_anything(job: Any) -> dict[str, Any]:
    """A compiler for `portability` that takes every kernel."""
    used = SPILLED | {"spill_stores": 0, "spill_loads": 0}
    return {"status": "ok", "why": "", "seconds": 0.0, **used, **FACTS}


def with_script(tools: Any, name: str, folder: Path, text: str) -> Any:
    """The tools with a shell script in the place of one of them."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return replace(tools, **{name: replace(getattr(tools, name), path=path)})


def without(package: str) -> Callable[[str], importlib.metadata.Distribution]:
    """`importlib.metadata.distribution` where one package is not installed."""
    real = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    return distribution


def compile_probe(job: Any) -> Any:
    """A compiler for `gate`: fp16 crashes it, tf32 hangs it, it refuses int8, and builds the rest."""
    from lean.toolchain.gate.compile import Compiled

    if job.probe.precision == "fp16":
        behave("crash")
    if job.probe.precision == "tf32":
        behave("hang")
    if job.probe.precision == "int8":
        facts = {"status": "blocked", "reached": None, "why": "int8: says no\n  at line 3", "seconds": 0.1}
        return Compiled(artifacts=(), facts=facts)
    stages = ("01_bytecode", "02_tileir", "03_cubin", "04_sass")
    suffixes = ("tilebc", "mlir", "cubin", "sass")
    artifacts = tuple((s, x, job.probe.name.encode()) for s, x in zip(stages, suffixes, strict=True))
    facts = {"status": "compile-only", "reached": "05_instruction", "found": ["HGMMA"], "seconds": 0.1}
    return Compiled(artifacts=artifacts, facts=facts)


def compile_nothing(job: Any) -> Any:
    from lean.toolchain.gate.compile import Compiled

    return Compiled(artifacts=(), facts={"status": "blocked", "reached": None, "why": "no", "seconds": 0.1})


def an_h100() -> dict[str, Any]:
    return {"status": "used", "device": {"name": "H100", "sm": "sm_90", "driver_release": "580.1"}}


def no_gpu() -> dict[str, Any]:
    return {"status": "no GPU", "reason": "no GPU: libcuda cannot be loaded"}


def a_broken_gpu() -> dict[str, Any]:
    return {"status": "unusable", "unusable": "driver r570 is too old"}


def a_gpu_that_crashes() -> dict[str, Any]:
    behave("crash")
    return {}


def an_old_gpu() -> dict[str, Any]:
    return {"status": "used", "device": {"name": "V100", "sm": "sm_70", "driver_release": "580.1"}}


def right(probe: Any) -> np.ndarray[Any, Any]:
    """The output of a device that is right: FP64, rounded to the output's own format."""
    out = probe.operands[-1].dtype
    want = expected(probe, inputs(probe))
    return encode(out, want * (1 + 2.0**-9) if out == "bf16" else want)  # encode cuts bf16, a chip rounds


def run_probe(job: Any) -> dict[str, Any]:
    """A device that is right, but wrong with fp8-e4m3, and that fails and hangs with two of fp8-e5m2."""
    from lean.toolchain.gate.launch import guarded, judged

    probe, data = job.probe, inputs(job.probe)
    assert job.cubin == probe.name.encode()
    if probe.name == "fp8-e5m2.mma":
        return {"status": "blocked", "why": "cuStreamSynchronize failed", "device_failed": True}
    if probe.name == "fp8-e5m2.weight-only":
        behave("hang")
    left = {operand.name: guarded(operand, data.get(operand.name)) for operand in probe.operands}
    got = right(probe)
    if probe.precision == "fp8-e4m3":
        got = got * np.float32(1.1)
    left[probe.operands[-1].name] = guarded(probe.operands[-1], got)
    return judged(probe, data, left) | {"run_seconds": 0.1}
