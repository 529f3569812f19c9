"""The in-process document that goes into a run's record: read strictly, and only if it is of the same run."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from lean.bench.record import Backend, PackFacts, Release, read_json
from lean.contracts import BenchProfile, Contract, from_data
from lean.errors import ContractError
from lean.in_process import InProcess

NOT_GIVEN = "none was given: lean.bench run got no --in-process"
NEAR_S = 600.0  # from the measurement's end to the service's start; `remote.bench` needs a few seconds


def read_in_process(
    file: Path,
    *,
    contract: Contract,
    profile: BenchProfile,
    pack: PackFacts,
    backend: Backend,
    slots: int,
    split_k: int | None,
    release: Release,
    host: str,
) -> InProcess:
    """What `lean.leanserve measure` left in `file`; how many rounds it ran is its own affair.

    `slots`, `split_k`: of the service. `host`: the machine's name in its facts. Errors: `ContractError`
    naming the file and what is wrong with it, or of which other contract, pack, profile, runner, release or
    host it is.
    """
    found = from_data(InProcess, read_json(file), str(file))
    shape = found.profile.with_counts(requests=profile.requests, warmup_requests=profile.warmup_requests)
    belongs = (
        ("contract", found.contract, contract.id),
        ("pack", found.lock, pack.lock),
        ("profile", found.profile.id, profile.id),
        ("profile", shape, profile),
        ("runner", found.runner.get("name"), backend.name),
        ("device", found.runner.get("device"), backend.device),
        ("compute dtype", found.runner.get("compute_dtype"), backend.compute_dtype),
        ("slots", found.runner.get("slots"), slots),
        ("split-K", found.runner.get("split_k"), split_k),
        ("release", found.release, release.id),
        ("host", found.host, host),
    )
    for name, got, wanted in belongs:
        if got != wanted:
            raise ContractError(f"{file}: measured in process with {name} {got}, this run has {wanted}")
    return found


def why_stale(found: InProcess, service: dict[str, Any]) -> str | None:
    """Why it was not measured right before this service started, if it was not; `service`: ready document."""
    measured, started = _time(found.finished_utc), _time(service.get("started_utc"))
    if measured is None or started is None:
        return "the document or the service does not say when it was measured, or started"
    before_s = (started - measured).total_seconds()
    if 0 <= before_s <= NEAR_S:
        return None
    how = f"{before_s:.0f} s before" if before_s > 0 else f"{-before_s:.0f} s after"
    return (
        f"the document is stale: it was measured {how} the service's start, not within {NEAR_S:.0f} s before"
    )


def _time(text: Any) -> datetime | None:
    """A time that names its zone, None for anything else."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo is not None else None
