"""What a model directory holds: configuration, shards, sizes, and whether it is a contract's model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lean.contracts import Contract, geometry_mismatches, model_facts
from lean.errors import UsageError
from lean.files.safe_path import open_regular
from lean.leanpack.checkpoint import PICKLE_SUFFIXES, read_config, read_shard_plan
from lean.leanpack.snapshot import Snapshot, read_snapshot
from lean.leanpack.tensor_file import TensorFile, read_tensor_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One safetensors file by its header alone. `bytes` is the file's size."""

    name: str
    bytes: int
    tensors: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractMatch:
    """`mismatches` name both values of every field that differs; empty when the checkpoint fits."""

    contract: str
    fits: bool
    mismatches: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """`complete`: every expected shard is there and holds the tensors its index names. Sizes in bytes."""

    path: str
    snapshot: Snapshot | None
    model: dict[str, str]
    expected: tuple[str, ...]
    present: tuple[Shard, ...]
    missing: tuple[str, ...]
    unnamed_tensors: tuple[str, ...]
    complete: bool
    tensors: int
    bytes: int
    pickles: tuple[str, ...]
    tokenizer: bool
    match: ContractMatch | None


def probe(folder: Path, contract: Contract | None = None) -> ProbeReport:
    """Read headers and configuration, never weights.

    A missing shard or a mismatch is part of the report; a malformed file is an error. Errors: `PackError`.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such directory; fetch the model first")
    config = read_config(folder)
    plan = read_shard_plan(folder)
    headers = {name: _header(folder, name) for name in plan.shards if os.path.lexists(folder / name)}
    missing = tuple(name for name in plan.shards if name not in headers)
    unnamed = tuple(
        sorted(
            tensor
            for tensor, shard in (plan.weight_map or {}).items()
            if shard in headers and tensor not in headers[shard].slots
        )
    )
    mismatches = geometry_mismatches(contract.model, config) if contract else ()
    return ProbeReport(
        path=str(folder),
        snapshot=read_snapshot(folder),
        model={name: str(value) for name, value in model_facts(config).items()},
        expected=plan.shards,
        present=tuple(_shard(name, file) for name, file in headers.items()),
        missing=missing,
        unnamed_tensors=unnamed,
        complete=not missing and not unnamed,
        tensors=sum(len(file.slots) for file in headers.values()),
        bytes=sum(file.size for file in headers.values()),
        pickles=tuple(sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)),
        tokenizer=(folder / "tokenizer.json").is_file(),
        match=ContractMatch(contract=contract.id, fits=not mismatches, mismatches=mismatches)
        if contract
        else None,
    )


def _header(folder: Path, name: str) -> TensorFile:
    descriptor = open_regular(folder, name)
    try:
        return read_tensor_file(descriptor, str(folder / name))
    finally:
        os.close(descriptor)


def _shard(name: str, file: TensorFile) -> Shard:
    dtypes = tuple(sorted({slot.dtype for slot in file.slots.values()}))
    return Shard(name=name, bytes=file.size, tensors=len(file.slots), dtypes=dtypes)
