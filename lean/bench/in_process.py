"""The in-process document that goes into a run's record: read strictly, and only if it is of the same run."""

from __future__ import annotations

from pathlib import Path

from lean.bench.record import Backend, PackFacts, read_json
from lean.contracts import BenchProfile, Contract, from_data
from lean.errors import ContractError
from lean.in_process import InProcess

NOT_GIVEN = "none was given: lean.bench run got no --in-process"


def read_in_process(
    file: Path, *, contract: Contract, profile: BenchProfile, pack: PackFacts, backend: Backend
) -> InProcess:
    """What `lean.leanserve measure` left in `file`; how many rounds it ran is its own affair.

    Errors: `ContractError` naming the file and what is wrong with it, or of which other contract, pack,
    profile, runner or device it is.
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
    )
    for name, got, wanted in belongs:
        if got != wanted:
            raise ContractError(f"{file}: measured in process with {name} {got}, this run has {wanted}")
    return found
