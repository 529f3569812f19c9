"""Where a pack's weights come from: a checkpoint, or a seed (`random_weights`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Protocol

from lean.errors import PackError
from lean.files.safe_path import read_small
from lean.leanpack.checkpoint import Checkpoint
from lean.leanpack.convert import to_bf16
from lean.leanpack.layout import PlannedTensor
from lean.leanpack.manifest import Source, Weights
from lean.leanpack.source import TOKENIZER_FILES, describe_source, weights_kind

MAX_TOKENIZER_BYTES = 64 << 20


class Origin(Protocol):
    """What a build asks of it."""

    @property
    def source(self) -> Source:
        """What the manifest says of it, every file hashed."""

    @property
    def weights(self) -> Weights:
        """What the label of a run goes by."""

    def contents(self, tensor: PlannedTensor) -> Iterator[bytes]:
        """The tensor's BF16 numbers in order, some MiB at a time."""

    def tokenizer(self) -> Mapping[str, bytes]:
        """The tokenizer's files by name, tokenizer.json among them. Errors: `PackError`."""

    def check_unchanged(self) -> None:
        """Raise `PackError` when it became something else since the build began."""


class CheckpointOrigin:
    """A checkpoint that fits the contract. Hashes all of its files when it is made."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._source = describe_source(checkpoint)

    @property
    def source(self) -> Source:
        """See `Origin`."""
        return self._source

    @property
    def weights(self) -> Weights:
        """See `Origin`."""
        return weights_kind(self._source)

    def contents(self, tensor: PlannedTensor) -> Iterator[bytes]:
        """See `Origin`."""
        for source in tensor.sources:
            shard, slot = self._checkpoint.tensors[source]
            origin = f"{self._checkpoint.folder / shard}: tensor {source}"
            for chunk in self._checkpoint.stream(source):
                yield to_bf16(chunk, slot.dtype, origin)

    def tokenizer(self) -> Mapping[str, bytes]:
        """See `Origin`; the bytes must still be the ones that were hashed."""
        folder = self._checkpoint.folder
        hashes = {file.path: file.sha256 for file in self._source.files}
        names = [name for name in TOKENIZER_FILES if name in hashes]
        if "tokenizer.json" not in names:
            raise PackError(f"{folder}: tokenizer.json is missing; a pack needs it")
        found = {name: read_small(folder, name, MAX_TOKENIZER_BYTES) for name in names}
        for name, data in found.items():
            if hashlib.sha256(data).hexdigest() != hashes[name]:
                raise PackError(f"{folder / name}: changed while it was being packed; fetch it again")
        return found

    def check_unchanged(self) -> None:
        """See `Origin`."""
        self._checkpoint.check_unchanged()
