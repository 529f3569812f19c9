"""What is being measured: the service's ready document and the pack, and whether they belong together."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from lean.bench.record import Backend, Baseline, PackFacts, Release, read_json
from lean.contracts import Contract, contract_sha256, encoded_contract, from_data
from lean.errors import ContractError, NotReadyError, PackError
from lean.leanpack import Pack, read_manifest, source_matches
from lean.leanpack.manifest import Source


def read_service(file: Path) -> dict[str, Any]:
    """The ready document that `leanserve serve` wrote. Errors: `NotReadyError` when it is not there."""
    if not file.exists():
        raise NotReadyError(
            f"{file}: the service is not ready, it writes this once a token came out; see its log"
        )
    return read_json(file)


def backend_of(service: dict[str, Any]) -> Backend:
    """The backend a ready document names. Errors: `ContractError` naming the field that is missing."""
    runner = _field(service, "runner", dict)
    coverage = runner.get("operator_coverage")
    return Backend(
        name=_field(runner, "name", str),
        device=_field(runner, "device", str),
        compute_dtype=_field(runner, "compute_dtype", str),
        operator_coverage=None if coverage is None else float(coverage),
        options=_options(service),
    )


def _options(service: dict[str, Any]) -> tuple[str, ...]:
    """What the service itself says is not as by default."""
    split_k, bucket = served_split_k(service), service.get("bucket")
    found = {
        f"split-K {split_k} of the output projection": split_k is not None,
        f"always {bucket} rows a step": bucket is not None,
        "region timing inside each step": service.get("regions") is not None,
    }
    return tuple(option for option, is_on in found.items() if is_on)


def served_split_k(service: dict[str, Any]) -> int | None:
    """Parts of the output projection that the service's runner takes, None where it is whole."""
    split_k = _field(service, "runner", dict).get("split_k")
    return None if split_k is None else int(split_k)


def served_slots(service: dict[str, Any]) -> int:
    """How many streams the service holds. Errors: `ContractError` naming the field that is missing."""
    return int(_field(_field(service, "runner", dict), "slots", int))


def is_uncleared(service: dict[str, Any]) -> bool:
    """Whether the service runs an encoding that the host's precision gate has not cleared."""
    gate = service.get("gate")
    return isinstance(gate, dict) and gate.get("status") == "not cleared"


def weights_sha256(source: Source) -> str:
    """One hash of a checkpoint's weight files, by path and SHA-256: what a pack and a baseline can share."""
    files = sorted((file.path, file.sha256) for file in source.files if file.path.endswith(".safetensors"))
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def baseline_of(service: dict[str, Any]) -> Baseline:
    """The baseline whose ready document this is. Errors: `ContractError` naming the field that is wrong."""
    names = (field.name for field in fields(Baseline))
    return from_data(Baseline, {name: service.get(name) for name in names}, "the baseline's ready document")


def baseline_backend(service: dict[str, Any]) -> Backend:
    """What answered, in the words of a baseline's ready document. Errors: as of `baseline_of`."""
    return Backend(
        name=f"{_field(service, 'system', str)} {_field(service, 'version', str)}",
        device=_field(service, "device", str),
        compute_dtype=_field(service, "compute_dtype", str),
        operator_coverage=None,
    )


def pack_facts(pack: Pack) -> PackFacts:
    """A pack's facts as a record keeps them."""
    manifest = pack.manifest
    return PackFacts(
        lock=pack.lock,
        lock_verified=pack.verified,
        contract_sha256=manifest.contract_sha256,
        weights=manifest.weights,
        source_id=manifest.source.id,
        source_revision=manifest.source.revision,
        source_matches=source_matches(manifest),
        source_sha256=weights_sha256(manifest.source) if manifest.source.kind != "random" else None,
    )


def measured_contract(named: Contract, pack: Path) -> Contract:
    """The contract that was named, in the encoding of the pack's weights, which makes it exploratory.

    A pack that cannot be read leaves it as it is: the run fails when it opens the pack, and says why.
    """
    try:
        manifest, _ = read_manifest(pack)
    except PackError:
        return named
    return encoded_contract(named, manifest.contract.encoding) if named.encoding == "bf16" else named


def check_served(contract: Contract, pack: PackFacts, service: dict[str, Any]) -> None:
    """Refuse to file numbers under the wrong name.

    Errors: `ContractError` when the pack is of another contract, or the service serves another pack.
    """
    expected = contract_sha256(contract)
    if pack.contract_sha256 != expected:
        raise ContractError(
            f"the pack was built for a contract with sha256 {pack.contract_sha256[:8]}, {contract.id} has "
            f"{expected[:8]}; build the pack again or name its contract"
        )
    served = _field(service, "lock", str)
    if served != pack.lock:
        raise ContractError(
            f"the service serves pack {served[:8]}, not {pack.lock[:8]}; serve that one or name this one"
        )


def read_release(file: Path) -> Release:
    """The release document that a sync left. Errors: `ContractError` naming the file and the field."""
    data = read_json(file)
    diff = data.get("diff_sha256")
    try:
        return Release(
            id=_field(data, "id", str),
            git_sha=_field(data, "git_sha", str),
            dirty=_field(data, "dirty", bool),
            diff_sha256=None if diff is None else str(diff),
        )
    except (ContractError, ValueError) as error:
        raise ContractError(f"{file}: {error}; sync again") from None


def _field(data: dict[str, Any], name: str, kind: type) -> Any:
    value = data.get(name)
    if not isinstance(value, kind):
        raise ContractError(f"{name}: expected {kind.__name__}, got {value!r}")
    return value
