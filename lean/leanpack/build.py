"""Building a pack: checked first, streamed tensor by tensor into a staging directory, then renamed."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from lean import __version__
from lean.contracts import Contract, contract_sha256
from lean.errors import PackError, UsageError
from lean.files.exclusive import hold
from lean.files.safe_path import read_small
from lean.files.staging import (
    check_space,
    clear_left_behind,
    named_disk_errors,
    publish,
    seal,
    staged_directory,
    write_file,
)
from lean.leanpack.checkpoint import Checkpoint
from lean.leanpack.convert import to_bf16
from lean.leanpack.cpu import cpu_isa, cpu_name
from lean.leanpack.layout import PlannedTensor, plan_aliases, plan_tensors
from lean.leanpack.lock import LOCK_NAME, FileRecord, hash_files, lock_of
from lean.leanpack.manifest import (
    MANIFEST_NAME,
    Manifest,
    TargetRecord,
    TensorRecord,
    encode_manifest,
    kv_layout,
)
from lean.leanpack.read import check_pack
from lean.leanpack.source import TOKENIZER_FILES, check_fits, describe_source, weights_kind
from lean.leanpack.weight_file import WeightFilePlan, plan_weight_files, tensor_bytes, write_weight_file

DTYPE: Literal["BF16"] = "BF16"
MAX_TOKENIZER_BYTES = 64 << 20
SLACK_BYTES = 1 << 20  # manifest, LOCK, directories


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build. `model`: a checkpoint directory; `packs`: where the pack gets its name."""

    model: Path
    contract: Contract
    packs: Path
    encoding: str
    target: str
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """`built` is False when the same pack was there already. Sizes in bytes."""

    path: str
    lock: str
    contract: str
    weights: str
    built: bool
    files: int
    tensors: int
    weight_bytes: int
    bytes: int


def build_pack(request: BuildRequest) -> BuildReport:
    """Build `packs/<contract>-<lock8>/`, or find that it exists.

    Errors: `ContractError` when the checkpoint is not the contract's, `PackError` when it is damaged,
    `PreflightError` when the disk is too full or another build of this contract runs. Nothing half-written
    stays.
    """
    check_request(request)
    contract, packs = request.contract, request.packs
    what = f"a pack of {contract.id}"
    with named_disk_errors(packs, what):
        packs.mkdir(parents=True, exist_ok=True)
        with (
            hold(packs / f".{contract.id}.lock", f"{what} in {packs}"),
            Checkpoint(request.model) as checkpoint,
        ):
            check_fits(checkpoint, contract.model)
            draft = draft_manifest(request, checkpoint)
            same = None if request.overwrite else _find_same(packs, draft)
            return same or _build(request, draft, checkpoint, what)


def _build(request: BuildRequest, draft: Manifest, checkpoint: Checkpoint, what: str) -> BuildReport:
    contract, packs = request.contract, request.packs
    plans = plan_weight_files(plan_tensors(contract.model), DTYPE)
    clear_left_behind(packs, f".{contract.id}.staging")
    check_space(packs, sum(plan.size for plan in plans) + SLACK_BYTES, what)
    with staged_directory(packs / f".{contract.id}.staging") as staging:
        manifest, lock = _write(staging, draft, plans, checkpoint)
        final = packs / f"{contract.id}-{lock[:8]}"
        if final.exists() and not request.overwrite:
            raise PackError(f"{final}: this pack is there, but damaged; --overwrite replaces it")
        publish(staging, final, replace=request.overwrite)
    return _report(final, manifest, lock, built=True)


def check_request(request: BuildRequest) -> None:
    """Raise `UsageError` for an encoding or target that cannot be built."""
    if request.encoding != request.contract.encoding:
        raise UsageError(f"encoding: the contract says {request.contract.encoding}, not {request.encoding}")
    if request.encoding != "bf16":
        raise UsageError(f"encoding: {request.encoding} cannot be built; known: bf16")
    if request.target != "cpu":
        raise UsageError(
            f"target: kernels for {request.target} cannot be built; --target cpu packs for the torch runner"
        )
    if not request.model.is_dir():
        raise UsageError(f"{request.model}: no such directory; fetch the model first")


def draft_manifest(request: BuildRequest, checkpoint: Checkpoint) -> Manifest:
    """What is known before the weights are converted: `tensors` lack their hashes, `files` is empty."""
    contract = request.contract
    source = describe_source(checkpoint)
    isa = cpu_isa()
    return Manifest(
        contract=contract,
        contract_sha256=contract_sha256(contract),
        weights=weights_kind(source),
        source=source,
        tensors=tuple(
            _record(tensor, offset, contract)
            for plan in plan_weight_files(plan_tensors(contract.model), DTYPE)
            for tensor, offset in zip(plan.tensors, plan.offsets, strict=True)
        ),
        aliases=plan_aliases(contract.model),
        buckets=contract.buckets,
        kv=kv_layout(contract),
        targets=(TargetRecord(name=f"cpu-{isa}", runner="torch", encoding=contract.encoding, kernels=()),),
        toolchain={
            "leanstack": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        build_host={
            "system": platform.system(),
            "machine": platform.machine(),
            "cpu": cpu_name(),
            "isa": isa,
        },
        files=(),
    )


def _record(tensor: PlannedTensor, offset: int, contract: Contract) -> TensorRecord:
    return TensorRecord(
        name=tensor.name,
        role=tensor.role,
        encoding=contract.encoding,
        dtype=DTYPE,
        shape=tensor.shape,
        file=tensor.file,
        offset=offset,
        size=tensor_bytes(tensor, DTYPE),
        sha256="",
        sources=tensor.sources,
    )


def _find_same(packs: Path, draft: Manifest) -> BuildReport | None:
    """An existing pack, verified, that is made of the same things.

    Builds are deterministic, so a pack whose manifest differs from the draft in hashes only is the one we
    would write. A damaged one does not count; when it has the very name of the new pack, `_build` says so.
    """
    for folder in sorted(packs.glob(f"{draft.contract.id}-????????")):
        try:
            manifest, _ = check_pack(folder, verify=False)
            bare = replace(
                manifest, files=(), tensors=tuple(replace(tensor, sha256="") for tensor in manifest.tensors)
            )
            if bare == draft:
                return _report(folder, *check_pack(folder, verify=True), built=False)
        except PackError:
            continue
    return None


def _write(
    staging: Path, draft: Manifest, plans: tuple[WeightFilePlan, ...], checkpoint: Checkpoint
) -> tuple[Manifest, str]:
    files: list[FileRecord] = []
    hashes: list[str] = []
    for plan in plans:
        print(f"pack {plan.name}, {plan.size} bytes", file=sys.stderr, flush=True)
        (staging / plan.name).parent.mkdir(exist_ok=True)
        with (staging / plan.name).open("xb") as out:
            written = write_weight_file(plan, out, lambda tensor: _contents(checkpoint, tensor))
            out.flush()
            seal(out.fileno())
        files.append(FileRecord(path=plan.name, size=plan.size, sha256=written.sha256))
        hashes += written.tensor_sha256
    small = [*_copy_tokenizer(staging, draft, checkpoint), *_describe_targets(staging, draft)]
    checkpoint.check_unchanged()
    manifest = replace(
        draft,
        tensors=tuple(replace(t, sha256=sha256) for t, sha256 in zip(draft.tensors, hashes, strict=True)),
        files=tuple(sorted([*files, *hash_files(staging, small)], key=lambda file: file.path)),
    )
    write_file(staging, MANIFEST_NAME, encode_manifest(manifest))
    lock = lock_of([*manifest.files, *hash_files(staging, [MANIFEST_NAME])])
    write_file(staging, LOCK_NAME, f"{lock}\n".encode())
    return manifest, lock


def _contents(checkpoint: Checkpoint, tensor: PlannedTensor) -> Iterator[bytes]:
    for source in tensor.sources:
        shard, slot = checkpoint.tensors[source]
        origin = f"{checkpoint.folder / shard}: tensor {source}"
        for chunk in checkpoint.stream(source):
            yield to_bf16(chunk, slot.dtype, origin)


def _copy_tokenizer(staging: Path, draft: Manifest, checkpoint: Checkpoint) -> list[str]:
    """Copy what a tokenizer needs; the bytes must still be the ones that were hashed."""
    sources = {file.path: file for file in draft.source.files}
    names = [name for name in TOKENIZER_FILES if name in sources]
    if "tokenizer.json" not in names:
        raise PackError(f"{checkpoint.folder}: tokenizer.json is missing; a pack needs it")
    for name in names:
        write_file(staging, f"tokenizer/{name}", read_small(checkpoint.folder, name, MAX_TOKENIZER_BYTES))
    copied = hash_files(staging, [f"tokenizer/{name}" for name in names])
    for name, file in zip(names, copied, strict=True):
        if file.sha256 != sources[name].sha256:
            raise PackError(f"{checkpoint.folder / name}: changed while it was being packed; fetch it again")
    return [file.path for file in copied]


def _describe_targets(staging: Path, draft: Manifest) -> list[str]:
    """One target.json per target, so that its directory says what runs there even with no kernels in it."""
    names = []
    for target in draft.targets:
        body = {"name": target.name, "runner": target.runner, "encoding": target.encoding, "kernels": []}
        names.append(f"targets/{target.name}/target.json")
        write_file(staging, names[-1], (json.dumps(body, indent=1, sort_keys=True) + "\n").encode())
    return names


def _report(path: Path, manifest: Manifest, lock: str, *, built: bool) -> BuildReport:
    return BuildReport(
        path=str(path),
        lock=lock,
        contract=manifest.contract.id,
        weights=manifest.weights,
        built=built,
        files=len(manifest.files) + 2,
        tensors=len(manifest.tensors),
        weight_bytes=manifest.weight_bytes,
        bytes=sum(file.size for file in manifest.files),
    )
