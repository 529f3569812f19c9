"""`verify`: every stage for every case and target, the GPU where there is one, and the probe."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from kernels import aot
from kernels.vector_add.cases import CASES, Case
from lean.errors import GateError, PreflightError, UsageError, error_document
from lean.toolchain.probe import ABOUT, SCHEMA, run_folder
from lean.toolchain.surroundings import foreign_kernels, toolkit_variables
from lean.toolchain.tools import find_tools, supported_targets
from lean.toolchain.verify.chain import Chain, Compiled, Say

ROOT = Path(__file__).resolve().parents[3]
DEFAULT_TARGETS = ("sm_121", "sm_90")
KERNEL = "kernels/vector_add"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to verify. `gpu`: `auto` runs on the first GPU there is, `none` leaves it out and says so."""

    out: Path
    targets: tuple[str, ...] = DEFAULT_TARGETS
    gpu: Literal["auto", "none"] = "auto"
    cases: tuple[Case, ...] = CASES


def verify(
    options: Options,
    environment: Mapping[str, str],
    say: Say,
    *,
    open_device: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """Run everything and return the probe, which also lies in `<out>/<UTC>/probe.json`.

    `environment` is this process's; the compiler gets it without CUDA_HOME and CUDA_PATH. `open_device` opens
    the GPU, the first one by default. A probe with an `error` is one whose proof failed.

    Errors, before anything is written: `PreflightError` for a missing tool or an unusable GPU, `UsageError`
    for an unknown target.
    """
    tools = find_tools()
    known = supported_targets(tools)
    unknown = [target for target in options.targets if target not in known]
    if unknown or not options.targets:
        raise UsageError(f"--target: tileiras does not know {', '.join(unknown)}; known: {', '.join(known)}")
    with ExitStack() as stack:
        device, gpu = _gpu(options, stack, open_device)
        targets = _targets(options, gpu, known, tools.tileiras.version)
        started = datetime.now(UTC)
        name, folder = stack.enter_context(run_folder(options.out, started))
        log = _Log(say)
        chain = Chain(
            tools=tools, folder=folder, environment=aot.clean_environment(environment), say=log, stages=[]
        )
        probe = _head(options.cases, targets, tools, environment)
        probe |= {"run": name, "started": started.isoformat(timespec="seconds"), "gpu": gpu}
        probe |= _prove(chain, options.cases, targets, device, gpu)
        probe["seconds"] = round((datetime.now(UTC) - started).total_seconds(), 3)
        folder.log("verify.log", "".join(f"{line}\n" for line in log.lines))
        folder.write_probe(probe)
    say(f"{probe['status']}: {name}/probe.json")
    return probe


class _Log:
    """Passes progress lines on and keeps them for the log file."""

    def __init__(self, say: Say) -> None:
        self.lines: list[str] = []
        self._say = say

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self._say(line)


def _gpu(
    options: Options, stack: ExitStack, open_device: Callable[[], Any] | None
) -> tuple[Any, dict[str, Any]]:
    if options.gpu == "none":
        return None, {"requested": "none", "status": "not run", "reason": "left out with --gpu none"}
    # They need cuda-bindings, which a compile-only host may lack.
    from lean.toolchain.chip.device import device_facts
    from lean.toolchain.verify import compare

    try:
        device = stack.enter_context(compare.open_gpu(open_device))
    except compare.NoGpuHere as error:
        return None, {"requested": "auto", "status": "no GPU", "reason": f"no GPU: compile-only. {error}"}
    return device, {"requested": "auto", "status": "not run", "device": device_facts(device)}


def _targets(options: Options, gpu: dict[str, Any], known: tuple[str, ...], release: str) -> tuple[str, ...]:
    if "device" not in gpu or gpu["device"]["sm"] in options.targets:
        return options.targets
    target = gpu["device"]["sm"]
    if target not in known:
        raise PreflightError(
            f"the GPU {gpu['device']['name']} is {target}, which tileiras {release} does not compile for "
            f"(it knows {', '.join(known)}); leave it out with --gpu none"
        )
    gpu["target_added"] = target
    return (*options.targets, target)


def _prove(
    chain: Chain, cases: tuple[Case, ...], targets: tuple[str, ...], device: Any, gpu: dict[str, Any]
) -> dict[str, Any]:
    try:
        compiled = [chain.compile(case, target) for target in targets for case in cases]
        if device is not None:
            _run_all(chain, device, gpu, [item for item in compiled if item.target == gpu["device"]["sm"]])
    except GateError as error:
        return {"status": "failed", "stages": chain.stages} | error_document(error)
    return {"status": "passed" if device is not None else "compile-only", "stages": chain.stages}


def _run_all(chain: Chain, device: Any, gpu: dict[str, Any], compiled: list[Compiled]) -> None:
    from lean.toolchain.verify import compare

    gpu["status"] = "failed"  # until every case has passed
    for item in compiled:
        entry: dict[str, Any] = {
            "stage": "05_run",
            "case": item.case.name,
            "target": item.target,
            "status": "failed",
        }
        chain.stages.append(entry)
        entry |= compare.run_case(device, item)
        chain.say(
            f"05_run {item.case.name} {item.target}: {entry['status']}, error {entry['max_relative_error']}"
        )
        if entry["status"] != "passed":
            raise GateError(
                f"05_run {KERNEL} case {item.case.name} on {item.target}: the result is wrong: "
                f"{entry['unwritten']} elements never written, {entry['written_past_end']} written past the "
                f"end, largest relative error {entry['max_relative_error']} where "
                f"{entry['relative_tolerance']} is allowed"
            )
    gpu["status"] = "passed"


def _head(
    cases: tuple[Case, ...], targets: tuple[str, ...], tools: aot.Tools, environment: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "about": ABOUT,
        "kernel": KERNEL,
        "cases": [_case(case) for case in cases],
        "targets": list(targets),
        "sources": _sources(targets),
        "tools": [_tool(tool) for tool in (getattr(tools, name) for name in tools.__slots__)],
        "cuda_tile": importlib.metadata.version("cuda-tile"),
        "bytecode_version": aot.BYTECODE_VERSION,
        "toolkit_variables": [
            asdict(variable) | {"cleared_for_the_compiler": True}
            for variable in toolkit_variables(environment)
        ],
        "foreign_kernels": list(foreign_kernels()),
        "machine": {
            "system": platform.system(),
            "machine": platform.machine(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
    }


def _case(case: Case) -> dict[str, Any]:
    return asdict(case) | {"grid": list(case.grid), "bytes_moved": case.bytes_moved, "flops": case.flops}


def _tool(tool: aot.Tool) -> dict[str, Any]:
    """A tool's facts; its path starts at the environment's package folder, so nobody's home is published."""
    facts = {"name": tool.name, "package": tool.package, "version": tool.version, "path": tool.location}
    return facts | _hashed(tool.path)


def _sources(targets: tuple[str, ...]) -> list[dict[str, Any]]:
    tuning = [f"kernels/tuning/{target}.json" for target in targets]
    covered = [
        f"{KERNEL}/kernel.py",
        f"{KERNEL}/cases.py",
        *(path for path in tuning if (ROOT / path).is_file()),
    ]
    return [{"path": path} | _hashed(ROOT / path) for path in covered]


def _hashed(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
