"""`manifest.json`: everything a reader must know about a pack, and nothing it must take on trust."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lean.contracts import Bucket, Contract, Encoding, contract_sha256, from_data, to_data
from lean.errors import ContractError, PackError
from lean.files.safe_path import check_relative_name, json_object
from lean.leanpack.kernel_record import TargetRecord, target_problems
from lean.leanpack.layout import PlannedTensor, StoredDType, plan_aliases, plan_tensors
from lean.leanpack.lock import FileRecord
from lean.leanpack.snapshot import HUBS, SourceFile, SourceKind

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
TOKENIZER_SUFFIXES = (".json", ".txt", ".jinja")
TOKENIZER_NAME = "tokenizer/tokenizer.json"

Weights = Literal["checkpoint", "random", "demo"]
OriginKind = Literal[SourceKind, "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The checkpoint a pack was built from, or the seed of random weights.

    `id` and `revision` are None for a directory that was never fetched. Of kind `random`, `revision` names
    the recipe, `seed` is set, and `files` are the tokenizer's alone.
    """

    kind: OriginKind
    id: str | None
    revision: str | None
    files: tuple[SourceFile, ...]
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """One stored tensor.

    `offset` and `size` are bytes, `offset` from the start of `file`; `shape` row-major. `encoding` is that of
    the matrix whose codes, scale or table it is; bf16 says that it is the tensor itself.
    """

    name: str
    role: str
    encoding: Encoding
    dtype: StoredDType
    shape: tuple[int, ...]
    file: str
    offset: int
    size: int
    sha256: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """The key-value cache this pack is meant for.

    `bytes_per_position`: all layers, keys and values, one stream.
    """

    kind: Literal["contiguous"]
    dtype: Literal["BF16"]
    layers: int
    kv_heads: int
    head_dim: int
    max_length: int
    max_batch: int
    bytes_per_position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole document. `files` lists every file but manifest.json and LOCK, sorted by path."""

    SCHEMA: ClassVar[str] = "leanpack/v1"

    contract: Contract
    contract_sha256: str
    weights: Weights
    source: Source
    tensors: tuple[TensorRecord, ...]
    aliases: dict[str, str]
    buckets: tuple[Bucket, ...]
    kv: KvLayout
    targets: tuple[TargetRecord, ...]
    toolchain: dict[str, str]
    build_host: dict[str, str]
    files: tuple[FileRecord, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all stored tensors, padding left out; an alias costs nothing."""
        return sum(tensor.size for tensor in self.tensors)


def source_matches(manifest: Manifest) -> bool:
    """Whether the pack holds the contract's own checkpoint: its revision, each file confirmed by the hub."""
    source, model = manifest.source, manifest.contract.model
    return (
        manifest.weights == "checkpoint"
        and source.kind in HUBS
        and model.revision is not None
        and (source.id, source.revision) == (model.id, model.revision)
        and all(file.hub_verified for file in source.files)
    )


def kv_layout(contract: Contract) -> KvLayout:
    """The cache layout of a contract's largest bucket, in BF16."""
    g = contract.model.geometry
    return KvLayout(
        kind="contiguous",
        dtype="BF16",
        layers=g.layers,
        kv_heads=g.kv_heads,
        head_dim=g.head_dim,
        max_length=contract.max_length,
        max_batch=contract.max_batch,
        bytes_per_position=2 * g.kv_values_per_token,
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """The document's bytes: sorted keys, so equal manifests are equal files."""
    return (json.dumps(to_data(manifest), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def decode_manifest(data: bytes, origin: Path) -> Manifest:
    """Parse and check a manifest against itself and against the layout its contract implies.

    Errors: `PackError` naming the file and the field.
    """
    try:
        manifest = from_data(Manifest, json_object(data, str(origin)), str(origin))
    except ContractError as error:
        raise PackError(str(error)) from None
    try:
        planned = plan_tensors(manifest.contract.model, manifest.contract.encoding)
    except ContractError as error:
        raise PackError(f"{origin}: contract: {error}") from None
    for problem in _problems(manifest, planned):
        raise PackError(f"{origin}: {problem}")
    for record in manifest.files:
        check_relative_name(record.path, f"{origin}: files")
    return manifest


def _problems(manifest: Manifest, planned: tuple[PlannedTensor, ...]) -> list[str]:
    """What is wrong, first things first; empty for a sound manifest."""
    contract = manifest.contract
    listed = [file.path for file in manifest.files]
    hashes = [
        manifest.contract_sha256,
        *(t.sha256 for t in manifest.tensors),
        *(f.sha256 for f in manifest.files),
    ]
    checks = {
        "contract_sha256: not the hash of the contract": contract_sha256(contract)
        != manifest.contract_sha256,
        "buckets: not the contract's": manifest.buckets != contract.buckets,
        "kv: not what the contract's geometry gives": manifest.kv != kv_layout(contract),
        "aliases: not what the contract's model has": manifest.aliases
        != plan_aliases(contract.model, contract.encoding),
        "files: expected sorted paths without repeats": listed != sorted(set(listed)),
        "files: manifest.json and LOCK do not list themselves": bool({MANIFEST_NAME, "LOCK"} & set(listed)),
        "files: negative size": any(file.size < 0 for file in manifest.files),
        "sha256: expected 64 hexadecimal digits": not all(_SHA256.fullmatch(text) for text in hashes),
        "source: random weights, their kind and their seed belong together": len(_says_random(manifest)) != 1,
    }
    found = [problem for problem, wrong in checks.items() if wrong]
    found += target_problems(manifest.targets, contract.encoding)
    return found or _file_problems(manifest, planned) or _tensor_problems(manifest, planned)


def _says_random(manifest: Manifest) -> set[bool]:
    source = manifest.source
    return {manifest.weights == "random", source.kind == "random", source.seed is not None}


def _file_problems(manifest: Manifest, planned: tuple[PlannedTensor, ...]) -> list[str]:
    listed = {file.path for file in manifest.files}
    weights = {plan.file for plan in planned}
    compiled = {
        file for target in manifest.targets for k in target.kernels for file in (k.tilebc, k.cubin, k.sass)
    }
    described = {f"targets/{target.name}/target.json" for target in manifest.targets}
    needed = weights | compiled | described | {TOKENIZER_NAME}
    found = [f"files: {path} is missing" for path in sorted(needed - listed)]
    for path in sorted(listed - needed):
        if not path.startswith("tokenizer/") or not path.endswith(TOKENIZER_SUFFIXES):
            found.append(f"files: {path} does not belong into a pack")
    return found


def _tensor_problems(manifest: Manifest, planned: tuple[PlannedTensor, ...]) -> list[str]:
    if [tensor.name for tensor in manifest.tensors] != [plan.name for plan in planned]:
        return ["tensors: not the tensors of the contract's geometry, in its order"]
    found = []
    for tensor, plan in zip(manifest.tensors, planned, strict=True):
        checks = {
            f"shape: expected {list(plan.shape)}, got {list(tensor.shape)}": tensor.shape != plan.shape,
            f"role: expected {plan.role!r}": tensor.role != plan.role,
            f"file: expected {plan.file!r}, got {tensor.file!r}": tensor.file != plan.file,
            f"sources: expected {list(plan.sources)}": tensor.sources != plan.sources,
            f"encoding: expected {plan.encoding!r}": tensor.encoding != plan.encoding,
            f"dtype: expected {plan.dtype!r}, got {tensor.dtype!r}": tensor.dtype != plan.dtype,
        }
        found += [f"tensors: {tensor.name}: {problem}" for problem, wrong in checks.items() if wrong]
    return found
