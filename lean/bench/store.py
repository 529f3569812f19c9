"""Writing a run directory: whole or not at all, once, never again."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lean.bench.plot import draw_plot
from lean.bench.record import RUN_FILE, RunRecord, dump_run
from lean.bench.report import write_report
from lean.bench.sums import write_sums
from lean.contracts import to_data
from lean.errors import PreflightError
from lean.files.staging import publish
from lean.host_facts import package_version

_PACKAGES = ("httpx", "matplotlib", "numpy", "safetensors", "tokenizers", "torch", "uvicorn", "starlette")
# Only settings that can change a measurement, by name: an environment may hold secrets.
_SETTINGS = (
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "MALLOC_ARENA_MAX",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
)


def write_run(record: RunRecord, results_root: Path, log: Sequence[str]) -> Path:
    """Write the record's directory beside its place, flush it to disk, then rename it there.

    Errors: `PreflightError` when the place is taken or cannot be written; then nothing new stands under its
    name.
    """
    place = results_root / record.place
    beside = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        beside.mkdir(parents=True)
    except OSError as error:
        raise PreflightError(
            f"{beside.parent}: cannot be written: {error.strerror}; give another --results"
        ) from None
    try:
        write_raw(beside, record, log)
        write_pages(record, beside)
        if place.exists():
            raise PreflightError(f"{place}: exists; a run record is never rewritten")
        publish(beside, place)
    except OSError as error:
        raise PreflightError(
            f"{place}: the run record cannot be written: {error.strerror}; free some space"
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # gone after the rename; left only where writing failed
    return place


def write_pages(record: RunRecord, folder: Path) -> None:
    """Write report.md and, where anything was measured, plot.png, from the record alone."""
    write_report(record, folder)
    draw_plot(record, folder / "plot.png")


def environment() -> dict[str, Any]:
    """What env.json holds: interpreter, packages, and the settings that can change a measurement."""
    return {
        "python": sys.version,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "packages": {name: package_version(name) for name in _PACKAGES},
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }


def write_raw(folder: Path, record: RunRecord, log: Sequence[str]) -> None:
    """Write the raw files of a run and their sums into `folder`. Errors: `OSError`."""
    lines = (json.dumps(to_data(sample), allow_nan=False) for sample in record.samples)
    texts = {
        RUN_FILE: dump_run(record),
        "env.json": json.dumps(environment(), indent=1, sort_keys=True) + "\n",
        "samples.jsonl": "".join(line + "\n" for line in lines),
        "log.txt": "".join(line + "\n" for line in log),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    write_sums(folder, tuple(texts))
