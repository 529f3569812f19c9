"""Run compiled kernels on a GPU against FP64, from prebuilt binaries: no compiler is needed, torch is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kernels.case import cases_of
from kernels.encodings import ENCODINGS
from lean.errors import GateError, error_document
from lean.toolchain.arguments import SEED
from lean.toolchain.built import Kernel, read_build
from lean.toolchain.chip.machine import Machine
from lean.toolchain.chip.trial import run_case
from lean.toolchain.probe import SCHEMA
from lean.toolchain.shapes import specs_of
from lean.toolchain.sources import hashed_sources

ABOUT = (
    "Proof of the appliance's kernels on a GPU: each compiled kernel, on each geometry, against FP64 on "
    "fresh seeded inputs. Arrays to be written and scratch were poisoned (NaN, then 3.4e38) and lie "
    "between guard bands; three runs had to leave the same bits; with every other row changed, a row had "
    "to keep its bits; what no kernel may touch had to keep its bits. `errors` of a case are, for each "
    "output, the worst row's ‖got - want‖ / ‖want‖ and the worst |got - want| / (|want| + rms(want)); "
    "`tolerances` gives their limits by kernel function and output, with the reason. bytes_moved and "
    "flops follow from the shape, they are not measured. Hashes are SHA-256."
)


def prove(
    folder: Path, machine: Machine, say: Callable[[str], None], sizes: Iterable[str] = ()
) -> dict[str, Any]:
    """Run every case of a build. Returns the probe; one with an `error` is a proof that failed.

    Errors: those of `read_build`.
    """
    started = datetime.now(UTC)
    index, kernels = read_build(folder, str(machine.facts["sm"]), sizes)
    results: list[dict[str, Any]] = []
    tolerances: dict[str, Any] = {}
    fault = None
    try:
        for kernel in kernels:
            loaded = machine.load(kernel.spec, kernel.cubin)
            for case in cases_of(kernel.spec):
                results.append(run_case(machine, loaded, kernel, case, tolerances))
                if results[-1]["problems"]:
                    say(f"FAILED {_named(results[-1])}")
    except GateError as error:  # after a fault nothing on this device can be trusted
        fault = error
    failed = [result for result in results if result["problems"]]
    if fault is None and failed:
        fault = GateError(f"{len(failed)} of {len(results)} cases failed; the first: {_named(failed[0])}")
    status = "failed" if fault else "passed"
    proved, missing = covered_operations(kernels)
    sources = hashed_sources(str(machine.facts["sm"]), proved) if proved else {}
    document = {
        "schema": SCHEMA,
        "about": ABOUT,
        "status": status,
        "run": started.strftime("%Y%m%dT%H%M%SZ"),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 3),
        "gpu": {"status": status, "device": machine.facts},
        "torch": torch.__version__,
        "seed": SEED,
        "tools": index["tools"],
        "sources": [{"path": path, "sha256": sha256} for path, sha256 in sources.items()],
        "operations": list(proved),
        "not_covered": missing,
        "kernels": index["kernels"],
        "tolerances": tolerances,
        "cases": results,
    }
    say(f"{status}: {len(results)} cases of {len(kernels)} kernels in {document['seconds']} s")
    return document | (error_document(fault) if fault else {})


def covered_operations(kernels: Sequence[Kernel]) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Operations whose every kernel function was run, and of the others the functions that were not."""
    ran = {kernel.spec.function for kernel in kernels}
    geometries = ("4b", *(f"4b+{encoding}" for encoding in ENCODINGS[1:]))
    every = {spec.function for geometry in geometries for spec in specs_of(geometry, "any")}
    missing: dict[str, list[str]] = {}
    for function in sorted(every - ran):
        missing.setdefault(function.split(".")[0], []).append(function.split(":")[1])
    return tuple(sorted({function.split(".")[0] for function in ran} - missing.keys())), missing


def _named(result: Mapping[str, Any]) -> str:
    return f"{result['sizes']} {result['kernel']} {result['case']}: {'; '.join(result['problems'])}"
