"""One probe of the gate from source to machine code, in a worker."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from kernels import aot
from kernels.gate_probes.compile import probe_kernel, probe_signature
from kernels.gate_probes.probes import Probe, wanted
from kernels.sass import read_sass
from lean.toolchain.instructions import read_instructions
from lean.toolchain.words import public


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One probe for one chip."""

    tools: aot.Tools
    probe: Probe
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """How far it came: (stage, suffix, bytes) of each file, and the facts that go into the cell."""

    artifacts: tuple[tuple[str, str, bytes], ...]
    facts: dict[str, Any]


def every(tools: aot.Tools) -> tuple[aot.Tool, ...]:
    """Each tool of the chain."""
    return tuple(getattr(tools, name) for name in tools.__slots__)


def compile_probe(job: Job) -> Compiled:
    """All stages, as far as they go; a refusal is an answer."""
    start = time.monotonic()
    artifacts: list[tuple[str, str, bytes]] = []
    facts: dict[str, Any] = {"status": "blocked", "reached": None}
    try:
        facts |= _stages(job, artifacts)
    except aot.AotError as error:
        facts["why"] = public(str(error))
    if artifacts and facts["reached"] is None:
        facts["reached"] = artifacts[-1][0]
    facts["seconds"] = round(time.monotonic() - start, 3)
    return Compiled(artifacts=tuple(artifacts), facts=facts)


def _stages(job: Job, artifacts: list[tuple[str, str, bytes]]) -> dict[str, Any]:
    """Append each stage's file as it comes. Errors: `AotError` of the first that fails."""
    tools, target = job.tools, job.target
    bytecode = aot.compile_bytecode(probe_kernel(job.probe), probe_signature(job.probe), target)
    artifacts.append(("01_bytecode", "tilebc", bytecode))
    artifacts.append(("02_tileir", "mlir", aot.disassemble_bytecode(tools, bytecode).encode()))
    cubin = aot.compile_cubin(tools, bytecode, target)
    artifacts.append(("03_cubin", "cubin", cubin))
    text = aot.disassemble_cubin(tools, cubin)
    artifacts.append(("04_sass", "sass", text.encode()))
    code = read_sass(text)
    instruction = wanted(job.probe, target)
    found = instruction.found(code)
    facts = {
        "wanted": str(instruction),
        "found": list(found),
        "matrix": list(read_instructions(code).matrix_forms),
        "resources": asdict(aot.resource_usage(tools, cubin, job.probe.symbol, code)),
    }
    if found:
        return facts | {"status": "compile-only", "reached": "05_instruction"}
    has = ", ".join(facts["matrix"]) or "none of the tensor core's"
    why = f"it compiles, but its machine code holds no {instruction}; found: {has}"
    return facts | {"status": "blocked", "reached": "04_sass", "why": why}
