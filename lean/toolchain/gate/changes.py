"""What a gate's record says beside its cells: what changed since the last one, and what to start from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernels.gate_probes.probes import PRECISIONS
from lean.errors import UsageError

_LOSSLESS = ("bf16", "fp16")
_PRODUCTS = ("mma", "block-scaled-mma", "weight-only", "weight-only-shift")


def newest(out: Path, previous: Path | None, schema: str) -> dict[str, Any] | None:
    """The record at `previous`, or the newest under `out`, if any. Errors: `UsageError` for none."""
    if previous is not None:
        found = _read(previous, schema)
        if found is None:
            raise UsageError(f"--previous: {previous}: no {schema} record")
        return found
    records = (_read(path, schema) for path in sorted(out.glob("*/gate.json"), reverse=True))
    return next((record for record in records if record is not None), None)


def changes(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, Any]:
    """Cells, tool versions and sources that are other than in the record `before`."""
    if before is None:
        return {"previous": None}
    old, new = ({_key(cell): cell for cell in record["cells"]} for record in (before, now))
    both = [key for key in new if key in old]
    return {
        "previous": before["run"],
        "tools": _pairs(before["tools"], now["tools"]),
        "sources": sorted(_pairs(before["sources"], now["sources"])),
        "gpu": [_device(before), _device(now)] if _device(before) != _device(now) else None,
        "cells": [
            {
                **dict(zip(("target", "precision", "route"), key, strict=True)),
                "before": old[key]["status"],
                "after": new[key]["status"],
                "reached": [old[key]["reached"], new[key]["reached"]],
                "why": new[key]["why"] or old[key]["why"],
            }
            for key in both
            if any(old[key][field] != new[key][field] for field in ("status", "reached"))
        ],
        "new_cells": len(new) - len(both),
        "not_asked_again": len(old) - len(both),
    }


def recommended(target: str, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The precision to start from on a chip, and those with fewer bytes a weight that are open to it.

    A gate knows nothing of a model's accuracy, so the primary one is that which changes no weight.
    """
    here = [cell for cell in cells if cell["target"] == target and cell["route"] in _PRODUCTS]
    usable = [cell for cell in here if cell["status"] in ("cleared", "compile-only")]
    ran = any(cell["status"] == "cleared" for cell in here)
    smaller = [cell for cell in usable if PRECISIONS[cell["precision"]] < 16]
    fewer = [
        {name: cell[name] for name in ("precision", "route", "status")}
        | {"bits": PRECISIONS[cell["precision"]]}
        for cell in sorted(
            smaller, key=lambda cell: (PRECISIONS[cell["precision"]], cell["status"] != "cleared")
        )
    ]
    products = [cell for cell in here if cell["route"] == "mma" and cell["precision"] in _LOSSLESS]
    good = sorted(
        (cell for cell in products if cell in usable),
        key=lambda cell: (cell["status"] != "cleared", _LOSSLESS.index(cell["precision"])),
    )
    if not good:
        why = "; ".join(
            f"{cell['precision']}: {cell['why'].splitlines()[0]}" for cell in products if cell["why"]
        )
        return {
            "primary": None,
            "why": why or "neither bf16 nor fp16 products were asked",
            "fewer_bytes": fewer,
        }
    first = good[0]
    basis = (
        "ran here and is correct"
        if first["status"] == "cleared"
        else "compiles to the chip's own instruction"
    )
    why = f"{first['precision']} products: {basis}; the checkpoint's own precision, so no weight changes"
    if not ran:
        why += "; nothing ran on this chip, so this rests on the machine code alone"
    return {"primary": first["precision"], "why": why, "fewer_bytes": fewer}


def _read(path: Path, schema: str) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
        return record if record["schema"] == schema else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _key(cell: Mapping[str, Any]) -> tuple[str, str, str]:
    return cell["target"], cell["precision"], cell["route"]


def _pairs(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> [before, now] of what differs."""
    names = sorted(set(before) | set(now))
    return {name: [before.get(name), now.get(name)] for name in names if before.get(name) != now.get(name)}


def _device(record: Mapping[str, Any]) -> str | None:
    device = record["gpu"].get("device")
    return f"{device['name']}, driver {device['driver_release']}" if device else None
