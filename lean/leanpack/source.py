"""The checkpoint a pack is built from: does it fit the contract, and is it what `fetch.json` says it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lean.contracts import Model, check_geometry
from lean.errors import ContractError, PackError
from lean.files.safe_path import list_regular_files
from lean.leanpack.checkpoint import CONFIG, Checkpoint
from lean.leanpack.convert import SOURCE_DTYPES
from lean.leanpack.layout import plan_tensors
from lean.leanpack.lock import FileRecord, hash_files
from lean.leanpack.manifest import Source, Weights
from lean.leanpack.snapshot import RECORD_NAME, SourceFile, read_snapshot

DEMO_ID_PREFIX = "leanstack/demo-"
TIED_DUPLICATE = "lm_head.weight"
EMBEDDING_SOURCE = "model.embed_tokens.weight"
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
# What changes the forward pass and the Qwen3 of leanserve does not do: field -> the values that mean "not
# used".
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (None, False),
    "quantization_config": (None,),
    "rope_scaling": (None,),
    "use_sliding_window": (None, False),
    "hidden_act": (None, "silu"),
}


def check_fits(checkpoint: Checkpoint, model: Model) -> None:
    """Raise unless the checkpoint is the contract's model: geometry, hyper-parameters, exactly its tensors.

    Errors: `ContractError` naming both values of a mismatch; `PackError` for a missing, surplus or
    ill-shaped tensor.
    """
    origin = checkpoint.folder / CONFIG
    check_geometry(model, checkpoint.config, str(origin))
    for field, harmless in _UNSUPPORTED.items():
        if checkpoint.config.get(field) not in harmless:
            raise ContractError(f"{origin}: {field}: {str(checkpoint.config[field])[:80]} is not supported")
    rope = checkpoint.config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ContractError(
            f"{origin}: rope_parameters.rope_type: {str(rope['rope_type'])[:80]} is not supported"
        )
    _check_tensors(checkpoint, model)


def _check_tensors(checkpoint: Checkpoint, model: Model) -> None:
    expected = {
        name: shape
        for tensor in plan_tensors(model)
        for name, shape in zip(tensor.sources, tensor.source_shapes, strict=True)
    }
    present = checkpoint.tensors
    for name, shape in expected.items():
        if name not in present:
            raise PackError(f"{checkpoint.folder}: tensor {name} is missing; the checkpoint is incomplete")
        shard, slot = present[name]
        where = f"{checkpoint.folder / shard}: tensor {name}"
        if slot.shape != shape:
            raise PackError(f"{where}: shape: expected {list(shape)}, got {list(slot.shape)}")
        if slot.dtype not in SOURCE_DTYPES:
            raise PackError(
                f"{where}: dtype: {slot.dtype} cannot become bf16; expected {', '.join(SOURCE_DTYPES)}"
            )
    for name in sorted(set(present) - set(expected)):
        if not (name == TIED_DUPLICATE and model.tied_head):
            raise PackError(
                f"{checkpoint.folder}: tensor {name[:80]!r} does not belong into a {model.family} model"
            )
    if model.tied_head and TIED_DUPLICATE in present:
        _check_duplicate(checkpoint)


def _check_duplicate(checkpoint: Checkpoint) -> None:
    """A tied checkpoint may store its head a second time; then it must be the embedding, bit by bit."""
    head, embedding = checkpoint.tensors[TIED_DUPLICATE][1], checkpoint.tensors[EMBEDDING_SOURCE][1]
    same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape) and all(
        left == right
        for left, right in zip(
            checkpoint.stream(TIED_DUPLICATE), checkpoint.stream(EMBEDDING_SOURCE), strict=True
        )
    )
    if not same:
        raise PackError(
            f"{checkpoint.folder}: {TIED_DUPLICATE} differs from {EMBEDDING_SOURCE}, yet the head is tied"
        )


def describe_source(checkpoint: Checkpoint) -> Source:
    """Hash every file the pack is made from and compare it with `fetch.json`. Errors: `PackError`."""
    folder = checkpoint.folder
    snapshot = read_snapshot(folder)
    present = list_regular_files(folder) if snapshot else _plain_names(folder)
    used = sorted(
        {*checkpoint.shards, *(name for name in present if name.endswith((".json", ".txt", ".jinja")))}
    )
    hashed = hash_files(folder, [name for name in used if name != RECORD_NAME])
    if snapshot is None:
        return Source(
            kind="directory", id=None, revision=None, files=tuple(_unverified(file) for file in hashed)
        )
    recorded = {file.path: file for file in snapshot.files}
    for file in hashed:
        known = recorded.get(file.path)
        if known is None or (known.size, known.sha256) != (file.size, file.sha256):
            raise PackError(f"{folder / file.path}: not what {RECORD_NAME} recorded; fetch the model again")
    return Source(
        kind=snapshot.source,
        id=snapshot.id,
        revision=snapshot.revision,
        files=tuple(recorded[file.path] for file in hashed),
    )


def weights_kind(source: Source) -> Weights:
    """`demo` for our own demo checkpoints, else `checkpoint`; `random` has a builder of its own."""
    return "demo" if source.id is not None and source.id.startswith(DEMO_ID_PREFIX) else "checkpoint"


def _unverified(file: FileRecord) -> SourceFile:
    return SourceFile(path=file.path, size=file.size, sha256=file.sha256, hub_verified=False)


def _plain_names(folder: Path) -> list[str]:
    """Files at the top of a directory nobody vouched for, where other things may lie about as well."""
    return [
        path.name
        for path in folder.iterdir()
        if path.name in TOKENIZER_FILES or path.name.endswith(".index.json")
    ]
