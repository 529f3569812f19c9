"""The hot-kernel bench: each hot operation of a contract on its exact shapes, beside torch and the limits.

Every kernel passes its case against FP64 before it is timed. Weights, keys and values rotate, launches run in
one graph with programmatic dependent launch as a step has them, and every sample is kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kernels.case import Draw, cases_of
from kernels.read_bandwidth.spec import NAME as READ
from lean.bench.host_state import read_host_state
from lean.errors import GateError, UsageError, error_document
from lean.host_facts import host_facts
from lean.toolchain.arguments import SEED
from lean.toolchain.built import Kernel
from lean.toolchain.chip.machine import TimingMachine
from lean.toolchain.chip.pace import Pace, Samples, take_samples
from lean.toolchain.chip.trial import run_case
from lean.toolchain.probe import RunFolder, run_folder
from lean.toolchain.sources import timing_sources
from lean.toolchain.speed.binaries import CUBIN, STAGES, Binaries, Binary
from lean.toolchain.speed.contract_shapes import ContractShapes
from lean.toolchain.speed.limits import bound_us, matrix_rate, read_bandwidth
from lean.toolchain.speed.operations import ABOUT as WHAT
from lean.toolchain.speed.operations import OPERATIONS, Operation, operations
from lean.toolchain.speed.peer import WORDS, peer_of
from lean.toolchain.speed.rotation import CACHES, rotate
from lean.toolchain.speed.steadiness import Read, clocks_document, verdict

SCHEMA = "kernel-bench/v1"
DOCUMENT = "kernels.json"
ABOUT = (
    "Each hot operation of the contract on its exact shapes. A sample is many replays of one CUDA graph, on "
    "the host's clock, over the operations in it; within the graph every launch starts as soon as the one "
    "before lets it (programmatic dependent launch), and takes the next copy of weights, keys and values: "
    "one round of all copies reads `rotated_bytes`. Before that each kernel passed its case against FP64 on "
    "seeded inputs (`checks`; `error` is the worst row's ‖got - want‖ / ‖want‖). bytes_moved: weights once, "
    "seen keys and values once, activations of the rows that count once; flops: 2 for each product. gbs and "
    "tflops are those over the median; bound_us is what the measured limit (`limits`) allows, "
    "percent_of_bound its share of the median. torch: the same operation by torch in bf16, in the same run; "
    "ratio is torch's median over ours. Microseconds are of one operation. Hashes are SHA-256."
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to measure. Empty `only` or `rows`: all operations, all numbers of rows."""

    out: Path
    only: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    seed: int = SEED
    pace: Pace = field(default_factory=Pace)
    torch: bool = True


def kernel_bench(
    options: Options,
    shapes: ContractShapes,
    binaries: Binaries,
    machine: TimingMachine,
    say: Say,
    *,
    read_state: Read = read_host_state,
) -> dict[str, Any]:
    """Measure. Returns the document, which also lies in `<out>/<run>/kernels.json` beside every stage's file.

    One with an `error` has a kernel that is wrong, or a device that failed or was throttled. Errors:
    `UsageError` for an
    unknown operation; `PreflightError` when `out` cannot be written.
    """
    start = time.monotonic()
    specs = [binary.spec for binary in binaries.kernels.values()]
    known, left_out = operations(shapes.sizes, specs, shapes.position)
    asked = chosen(known, options)
    with run_folder(options.out, started := datetime.now(UTC)) as (name, folder):
        bench = _Bench(options, shapes, binaries, machine, say)
        needed = sorted({kernel for operation in asked for kernel in operation.kernels} | {READ})
        files = {kernel: keep_stages(folder, kernel, binaries.kernels[kernel]) for kernel in needed}
        before = read_state()
        bench.check(needed)
        bench.measure_limits()
        bench.measure(asked)
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "about": ABOUT,
            "run": name,
            "started": started.isoformat(timespec="seconds"),
            "contract": {"id": shapes.id, "file": shapes.file, "encoding": shapes.encoding},
            "target": machine.facts["sm"],
            "gpu": machine.facts | {"cache_bytes": machine.cache_bytes},
            "host": host_facts(),
            "torch": torch.__version__,
            "tools": binaries.tools,
            "compiled_by": binaries.compiled_by,
            "sources": binaries.sources | {shapes.file: shapes.sha256} | timing_sources(),
            "pace": asdict(options.pace),
            "seed": options.seed,
            "least_rotated_bytes": bench.least_bytes,
            "limits": bench.limits,
            "kernels": {
                kernel: {"resources": binaries.kernels[kernel].resources, "files": files[kernel]}
                for kernel in needed
            },
            "checks": bench.checks,
            "operations": bench.results,
            "not_applicable": left_out,
            "whole": len(asked) == len(known) and options.torch,
            **clocks_document(before, read_state()),
        }
        document["seconds"] = round(time.monotonic() - start, 3)
        document |= verdict(bench.verdict(), document["throttled"])
        folder.write(".", DOCUMENT, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
    say(f"{len(bench.results)} operations in {document['seconds']} s")
    return document


def chosen(known: Sequence[Operation], options: Options) -> tuple[Operation, ...]:
    """The operations asked for. Errors: `UsageError` for an unknown name, or for rows that there are not."""
    if unknown := [name for name in options.only if name not in OPERATIONS]:
        raise UsageError(f"--only: {', '.join(unknown)}; expected some of {', '.join(OPERATIONS)}")
    counts = sorted({operation.rows for operation in known})
    if strange := [str(rows) for rows in options.rows if rows not in counts]:
        raise UsageError(f"--rows: {', '.join(strange)}; expected some of {', '.join(map(str, counts))}")
    asked = tuple(
        operation
        for operation in known
        if operation.name in (options.only or OPERATIONS) and operation.rows in (options.rows or counts)
    )
    if not asked:
        raise UsageError("--only, --rows: no such operation; the head takes 1, 2, 4 or 8 rows")
    return asked


def keep_stages(folder: RunFolder, kernel: str, binary: Binary) -> dict[str, Any]:
    """Write what is known of each stage of a kernel; the entries by stage."""
    return {
        stage: folder.write(stage, f"{kernel}.{STAGES[stage]}", data) for stage, data in binary.stages.items()
    }


class _Bench:
    """What a run has found so far."""

    def __init__(
        self,
        options: Options,
        shapes: ContractShapes,
        binaries: Binaries,
        machine: TimingMachine,
        say: Say,
    ) -> None:
        self._options, self._shapes, self._binaries = options, shapes, binaries
        self._machine, self._say = machine, say
        self._loaded: dict[str, Any] = {}
        self._fault: GateError | None = None
        self.least_bytes = CACHES * machine.cache_bytes
        self.checks: dict[str, dict[str, Any]] = {}
        self.results: list[dict[str, Any]] = []
        missing = {"status": "missing", "reason": "not reached"}
        self.limits: dict[str, dict[str, Any]] = {"read_bandwidth": missing, "matrix_rate": missing}

    def check(self, kernels: Sequence[str]) -> None:
        """Try each kernel on its first case."""
        for name in kernels:
            if self._fault is None:
                self._try(name, self._binaries.kernels[name])
        wrong = [name for name, check in self.checks.items() if check["problems"]]
        self._say(f"{len(self.checks)} kernels checked, {len(wrong)} wrong")

    def _try(self, name: str, binary: Binary) -> None:
        case = cases_of(binary.spec)[0]
        tolerances: dict[str, Any] = {}
        try:
            loaded = self._machine.load(binary.spec, binary.stages[CUBIN])
            kernel = Kernel(sizes=self._shapes.id, spec=binary.spec, cubin=binary.cubin)
            found = run_case(self._machine, loaded, kernel, case, tolerances)
        except GateError as error:  # after a fault nothing on this device can be trusted
            self._fault = error
            return
        except RuntimeError as error:  # torch's: no memory left
            problems = [f"not tried: {first_line(error)}"]
            found = {"status": "failed", "problems": problems, "errors": {}}
        self.checks[name] = {
            "case": case.name,
            "status": found["status"],
            "problems": found["problems"],
            "errors": found["errors"],
            "tolerances": tolerances,
        }
        if not found["problems"]:
            self._loaded[name] = loaded

    def measure_limits(self) -> None:
        """Reading and the matrix rate, each or the reason it is missing."""
        if self._fault is not None:
            return
        pace, machine = self._options.pace, self._machine
        try:
            if READ in self._loaded:
                binary = self._binaries.kernels[READ]
                self.limits["read_bandwidth"] = read_bandwidth(
                    machine, binary, self._loaded[READ], self.least_bytes, pace, self._options.seed
                )
            else:
                self.limits["read_bandwidth"] = {"status": "missing", "reason": f"{READ} failed its case"}
        except GateError as error:
            self._fault = error
            return
        except RuntimeError as error:
            self.limits["read_bandwidth"] = {"status": "missing", "reason": first_line(error)}
        if self._options.torch:
            try:
                self.limits["matrix_rate"] = matrix_rate(machine, pace)
            except RuntimeError as error:
                self.limits["matrix_rate"] = {"status": "missing", "reason": first_line(error)}
        else:
            self.limits["matrix_rate"] = {"status": "missing", "reason": "left out with --no-torch"}
        for name, found in self.limits.items():
            self._say(f"{name}: {found.get('gbs', found.get('tflops', found.get('reason')))}")

    def measure(self, asked: Sequence[Operation]) -> None:
        """Time every operation, ours and torch's."""
        for operation in asked:
            self.results.append(self._operation(operation))
            self._say(line(self.results[-1]))

    def _operation(self, operation: Operation) -> dict[str, Any]:
        found: dict[str, Any] = {
            "operation": operation.name,
            "what": WHAT[operation.name],
            "rows": operation.rows,
            "path": operation.path,
            "position": operation.position,
            "kernels": list(operation.kernels),
            "bytes_moved": operation.bytes_moved,
            "flops": operation.flops,
        }
        wrong = [kernel for kernel in operation.kernels if kernel not in self._loaded]
        if self._fault is None and wrong:
            reason = f"not timed: {', '.join(wrong)} failed its case"
            return found | {"status": "failed", "reason": reason, "torch": self._torch(operation)}
        if self._fault is None:
            try:
                samples, copies, rotated = self._ours(operation)
            except GateError as error:
                self._fault = error
            except RuntimeError as error:
                reason = f"not timed: {first_line(error)}"
                return found | {"status": "failed", "reason": reason, "torch": self._torch(operation)}
        if self._fault is not None:
            reason = f"not timed: the device failed: {self._fault}"
            unmeasured = {"status": "missing", "reason": reason}
            return found | {"status": "failed", "reason": reason, "torch": unmeasured}
        us = samples.median_us
        bound, least_us = bound_us(
            operation.bytes_moved,
            operation.flops,
            self.limits["read_bandwidth"],
            self.limits["matrix_rate"],
        )
        peer = self._torch(operation)
        return found | {
            "status": "measured",
            **samples.document(),
            "copies": copies,
            "rotated_bytes": rotated,
            "gbs": round(operation.bytes_moved / us / 1e3, 2),
            "tflops": round(operation.flops / us / 1e6, 3),
            "bound": bound,
            "bound_us": None if least_us is None else round(least_us, 4),
            "percent_of_bound": None if least_us is None else round(100 * least_us / us, 2),
            "error": worst_error(self.checks[kernel]["errors"] for kernel in operation.kernels),
            "torch": peer,
            "ratio": round(peer["median_us"] / us, 4) if "median_us" in peer else None,
        }

    def _ours(self, operation: Operation) -> tuple[Samples, int, int]:
        shapes, machine = self._shapes, self._machine
        draw = Draw(self._options.seed, machine.device)
        with machine.scope():
            turning = rotate(
                operation, shapes.sizes, shapes.rope_theta, draw, machine.device, self.least_bytes
            )
            replay = machine.record(turning.launches(operation, self._loaded))
            samples = take_samples(replay, turning.copies * turning.rounds, self._options.pace)
        return samples, turning.copies, turning.bytes

    def _torch(self, operation: Operation) -> dict[str, Any]:
        if not self._options.torch:
            return {"status": "missing", "reason": "left out with --no-torch"}
        shapes, machine, seed = self._shapes, self._machine, self._options.seed
        try:
            peer = peer_of(operation, shapes.sizes, shapes.rope_theta, machine.device, self.least_bytes, seed)
            samples = take_samples(machine.record_torch(peer.works), len(peer.works), self._options.pace)
        except (GateError, RuntimeError, TypeError) as error:  # an operation that this torch does not have
            return {"status": "missing", "reason": str(error).splitlines()[0]}
        return {
            "status": "measured",
            "as": WORDS[operation.name],
            "copies": peer.copies,
            "rotated_bytes": peer.bytes,
            **samples.document(),
        }

    def verdict(self) -> dict[str, Any]:
        """The status, and the `error` of a run in which a kernel was wrong or the device failed."""
        wrong = [name for name, check in self.checks.items() if check["problems"]]
        failed = [line(found) for found in self.results if found["status"] != "measured"]
        if self._fault is None and not wrong and not failed:
            return {"status": "passed"}
        if self._fault is not None:
            fault = self._fault
        elif not wrong:
            fault = GateError(f"{len(failed)} operations were not timed; the first: {failed[0]}")
        else:
            first = f"{wrong[0]}: {'; '.join(self.checks[wrong[0]]['problems'])}"
            fault = GateError(f"{len(wrong)} kernels are wrong and were not timed; the first: {first}")
        return {"status": "failed", **error_document(fault)}


def first_line(error: Exception) -> str:
    """What an exception says, in short."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def worst_error(errors: Any) -> float | None:
    """The largest error of a row's norm over all outputs; None where one is no number."""
    norms = [norm for outputs in errors for norm, _ in outputs.values()]
    return None if any(norm is None for norm in norms) else max(norms, default=0.0)


def line(result: Mapping[str, Any]) -> str:
    """One operation in one line."""
    head = f"{result['operation']} M={result['rows']}"
    if result["status"] != "measured":
        return f"{head}: {result['reason']}"
    peer = result["torch"]
    beside = f"torch {peer['median_us']:.2f} us" if "median_us" in peer else f"torch: {peer['reason']}"
    share = "" if result["percent_of_bound"] is None else f", {result['percent_of_bound']:.0f} % of its bound"
    return f"{head}: {result['median_us']:.2f} us{share}; {beside}"
