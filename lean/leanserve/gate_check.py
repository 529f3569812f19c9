"""Whether the chip of this host was shown to compute in a pack's encoding, by the host's own gate records.

The routes are those that our kernels take: weights are widened to BF16 in registers. A gate clears a route
when it compiled, ran here, and was right (`lean.toolchain.gate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lean.contracts import Encoding
from lean.errors import GateError, LeanError
from lean.files.safe_path import json_object, read_small

SCHEMA = "gate/v1"
DOCUMENT = "gate.json"
MAX_BYTES = 16 << 20
ROUTES: dict[Encoding, tuple[str, ...]] = {
    "fp8-e4m3": ("weight-only",),
    "int4-codebook": ("weight-only",),
    "nvfp4": ("weight-only-shift",),
}
_FIX = "run: invoke remote.gate, or serve with --allow-uncleared"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """What the gate says of an encoding here. `record` names the run that says so."""

    encoding: Encoding
    status: Literal["not needed", "cleared", "not cleared"]
    record: str | None
    why: str


def check_gate(
    encoding: Encoding, runner: str, targets: Sequence[str], records: Sequence[Path], *, allow: bool
) -> GateVerdict:
    """The verdict for a pack's encoding and targets by the newest record that asked for it.

    `records`: gate.json files, and folders of gate runs; what is no gate record counts for nothing. Errors:
    `GateError` naming the fix where the encoding is not cleared, unless `allow`.
    """
    verdict = _verdict(encoding, runner, targets, records)
    if verdict.status == "not cleared" and not allow:
        raise GateError(f"encoding {encoding}: {verdict.why}; {_FIX}")
    return verdict


def _verdict(encoding: Encoding, runner: str, targets: Sequence[str], records: Sequence[Path]) -> GateVerdict:
    if encoding == "bf16" or runner != "cuda":
        why = "the torch runner decodes to FP32" if runner != "cuda" else "bf16 needs no gate"
        return GateVerdict(encoding=encoding, status="not needed", record=None, why=why)
    routes = ROUTES[encoding]
    asked = [
        (record["started"], record["run"], cell)
        for record in _records(records)
        for cell in record["cells"]
        if (cell["target"] in targets and cell["precision"] == encoding and cell["route"] in routes)
    ]
    if not asked:
        why = f"no gate record of this host asked {' or '.join(routes)} on {', '.join(targets) or 'its chip'}"
        return GateVerdict(encoding=encoding, status="not cleared", record=None, why=why)
    _, run, _ = max(asked, key=lambda found: found[:2])
    cells = [cell for _, of, cell in asked if of == run]
    cleared = [cell for cell in cells if cell["status"] == "cleared"]
    shown = "; ".join(
        f"{cell['route']} on {cell['target']} is {cell['status']}{_reason(cell)}" for cell in cleared or cells
    )
    return GateVerdict(
        encoding=encoding,
        status="cleared" if cleared else "not cleared",
        record=run,
        why=f"{shown} in gate {run}",
    )


def _reason(cell: dict[str, Any]) -> str:
    return f" ({cell['why'].splitlines()[0][:160]})" if cell["why"] else ""


def _records(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        for file in sorted(path.glob(f"*/{DOCUMENT}")) if path.is_dir() else [path]:
            try:
                record = json_object(read_small(file.parent, file.name, MAX_BYTES), str(file))
                if record["schema"] == SCHEMA:
                    yield _plain(record)
            except (LeanError, OSError, KeyError, TypeError):
                continue


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """What a verdict needs. Errors: `KeyError`, `TypeError` for what is no record."""
    names = ("target", "precision", "route", "status", "why")
    cells = [{name: _text(cell, name) for name in names} for cell in record["cells"]]
    return {"run": _text(record, "run"), "started": _text(record, "started"), "cells": cells}


def _text(data: dict[str, Any], name: str) -> str:
    if not isinstance(data[name], str):
        raise TypeError(f"{name}: expected text")
    return str(data[name])
