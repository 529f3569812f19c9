"""The four compile stages for one case on one target, each reading what the one before it wrote."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from kernels import aot
from kernels.sass import SassFacts, read_sass
from kernels.vector_add.cases import Case
from kernels.vector_add.kernel import SYMBOL, signature, vector_add
from lean.errors import GateError, PreflightError
from lean.toolchain.probe import RunFolder
from lean.toolchain.surroundings import explain_compile_failure

Say = Callable[[str], None]
T = TypeVar("T")


class StageError(GateError):
    """A stage failed; the message names it, its cause and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What came out for one case on one target."""

    case: Case
    target: str
    cubin: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Runs the stages and appends one entry for each to `stages`, the failed one included.

    `environment` is what tileiras gets, normally `aot.clean_environment()`.
    """

    tools: aot.Tools
    folder: RunFolder
    environment: Mapping[str, str]
    say: Say
    stages: list[dict[str, Any]]

    def compile(self, case: Case, target: str) -> Compiled:
        """All four stages. Errors: `StageError`; `PreflightError` for a tool that does not start."""
        bytecode = self._stage(
            "01_bytecode",
            "tilebc",
            case,
            target,
            lambda: aot.compile_bytecode(vector_add, signature(case), target),
        )
        self._stage(
            "02_tileir", "mlir", case, target, lambda: aot.disassemble_bytecode(self.tools, bytecode).encode()
        )
        cubin = self._stage(
            "03_cubin",
            "cubin",
            case,
            target,
            lambda: aot.compile_cubin(self.tools, bytecode, target, environment=self.environment),
        )
        text = self._stage(
            "04_sass", "sass", case, target, lambda: aot.disassemble_cubin(self.tools, cubin).encode()
        )
        self._inspect(case, target, cubin, read_sass(text.decode()))
        return Compiled(case=case, target=target, cubin=cubin)

    def _stage(self, stage: str, suffix: str, case: Case, target: str, work: Callable[[], bytes]) -> bytes:
        name = f"{SYMBOL}.{case.name}.{target}"
        entry: dict[str, Any] = {"stage": stage, "case": case.name, "target": target, "status": "passed"}
        self.stages.append(entry)
        start = time.perf_counter()
        data = self._attempt(work)
        entry["seconds"] = round(time.perf_counter() - start, 3)
        entry |= self.folder.write(stage, f"{name}.{suffix}", data)
        self.say(f"{stage} {name}: {len(data)} bytes, {entry['seconds']:.2f} s")
        return data

    def _inspect(self, case: Case, target: str, cubin: bytes, facts: SassFacts) -> None:
        resources = self._attempt(lambda: aot.resource_usage(self.tools, cubin, SYMBOL, facts))
        self.stages[-1] |= {"inspected": asdict(facts), "resources": asdict(resources)}
        wrong = sass_problems(case, target, facts)
        if wrong:
            raise self._failed(
                f"{'; '.join(wrong)}. The compiler chose other instructions than kernels/vector_add/cases.py "
                "expects: read the .sass file, then correct the kernel or the case"
            )

    def _attempt(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except aot.StageFailed as error:
            raise self._failed(str(error)) from None
        except aot.ToolMissing as error:
            raise PreflightError(str(error)) from None

    def _failed(self, message: str) -> StageError:
        entry = self.stages[-1]
        name = f"{entry['stage']} {SYMBOL}.{entry['case']}.{entry['target']}"
        cause = explain_compile_failure(message, self.environment)
        entry |= {"status": "failed", "log": self.folder.log(f"{name.replace(' ', '.')}.log", f"{cause}\n")}
        return StageError(f"{name}: {cause}")


def sass_problems(case: Case, target: str, facts: SassFacts) -> tuple[str, ...]:
    """What the machine code lacks of what the case demands; empty when nothing."""
    wrong = []
    if facts.target.rstrip("abcdef") != target:
        wrong.append(f"built for {facts.target}, not for {target}")
    if SYMBOL not in facts.functions:
        wrong.append(f"no function {SYMBOL}")
    wrong += [f"no {opcode}" for opcode in case.sass if not facts.holds(opcode)]
    for kind, widths in (("load", facts.global_load_bytes), ("store", facts.global_store_bytes)):
        if not widths and not facts.bulk_copies:
            wrong.append(f"no global {kind}")
        elif widths and widths[0] < case.access_bytes:
            wrong.append(
                f"a global {kind} of {widths[0]} bytes per thread where {case.access_bytes} are expected"
            )
    if facts.spill_stores or facts.spill_loads:
        wrong.append(f"{facts.spill_stores} spill stores and {facts.spill_loads} spill loads")
    return tuple(wrong)
