"""What a chip that nobody measured might do: arithmetic from a run on another one, and never a result.

A decode step is bound by what it reads. So the time of a token is its bytes over the chip's achievable read
bandwidth, over the share of that bandwidth that the same kernels reached where they were measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.contracts import Contract
from lean.errors import IntegrityError
from lean.leanserve.plan import model_bytes

PROFILE = "decode_64_256"
POSITION = 64 + 256 // 2  # the mean length of that profile
# GB/s of reads alone. sm_90: a sum over 2 GiB, replayed as a graph on an H100 80GB HBM3, 2026-11-21;
# sm_121: GB10.
ACHIEVABLE_READ_GBS = {"sm_90": 3070.0, "sm_121": 231.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """One stream of `decode_64_256` on a target. `label` says what it is; `basis` names the measured run."""

    label: str
    target: str
    read_bytes_per_token: int
    achievable_read_gbs: float
    share: float
    token_ms: float
    tokens_per_second: float
    basis: str


def project(contract: Contract, results: Path) -> Projection | None:
    """From the newest run of the cuda runner on another target whose bandwidth is known, if there is one.

    Errors: `IntegrityError` naming a run that cannot be read, `ContractError` for an encoding without a size.
    """
    measured = _newest(results)
    if measured is None or contract.target not in ACHIEVABLE_READ_GBS:
        return None
    run, target, share = measured
    if target == contract.target:
        return None
    model = contract.model
    embedding = 0 if model.tied_head else 2 * model.geometry.vocab * model.geometry.hidden
    kv = 2 * model.geometry.kv_values_per_token * POSITION
    needed = model_bytes(model, contract.encoding) - embedding + kv
    bandwidth = ACHIEVABLE_READ_GBS[contract.target]
    token_ms = needed / (bandwidth * 1e6 * share)
    return Projection(
        label="projection, not measured",
        target=contract.target,
        read_bytes_per_token=needed,
        achievable_read_gbs=bandwidth,
        share=share,
        token_ms=token_ms,
        tokens_per_second=1e3 / token_ms,
        basis=run,
    )


def _newest(results: Path) -> tuple[str, str, float] | None:
    found = []
    for path in results.glob(f"v1/*/{PROFILE}/*/run.json"):
        try:
            run: dict[str, Any] = json.loads(path.read_bytes())
            target = run["contract"]["target"]
            usable = run["status"] == "ok" and run["backend"]["name"] == "cuda"
            if usable and target in ACHIEVABLE_READ_GBS:
                rate = float(run["metrics"]["bytes_per_s"]["median"])
                if rate <= 0:
                    raise ValueError(f"bytes_per_s is {rate}")
                share = rate / (ACHIEVABLE_READ_GBS[target] * 1e9)
                name = path.parent.relative_to(results).as_posix()
                found.append((str(run["started_utc"]), name, target, share))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{path}: no run record: {error!r}") from None
    return max(found)[1:] if found else None
