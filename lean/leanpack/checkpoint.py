"""A checkpoint in Hugging Face's layout: `config.json` and safetensors shards, read without trusting them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lean.errors import PackError
from lean.files.safe_path import check_relative_name, json_object, open_regular, read_small
from lean.leanpack.tensor_file import TensorFile, TensorSlot, read_tensor_file

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_CONFIG_BYTES = 4 << 20
MAX_INDEX_BYTES = 32 << 20
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
CHUNK = 4 << 20  # bytes of one read while streaming


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's config.json. Errors: `PackError` naming the file and the field."""
    config = json_object(read_small(folder, CONFIG, MAX_CONFIG_BYTES), str(folder / CONFIG))
    if not isinstance(config.get("rope_parameters") or {}, dict):
        raise PackError(f"{folder / CONFIG}: rope_parameters: expected an object")
    return config


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """Which shard files a checkpoint should have. `weight_map`: tensor -> shard, None for a single file."""

    shards: tuple[str, ...]
    weight_map: Mapping[str, str] | None


def read_shard_plan(folder: Path) -> ShardPlan:
    """The shards that the index names, or the single file where there is no index. Errors: `PackError`."""
    if not (folder / INDEX).exists():
        return ShardPlan(shards=(SINGLE,), weight_map=None)
    origin = str(folder / INDEX)
    index = json_object(read_small(folder, INDEX, MAX_INDEX_BYTES), origin)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise PackError(f"{origin}: weight_map: expected an object that names a shard for every tensor")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise PackError(
                f"{origin}: weight_map: {tensor[:80]!r}: got {str(shard)[:80]!r}, not a .safetensors file"
            )
        check_relative_name(shard, f"{origin}: weight_map")
    return ShardPlan(shards=tuple(sorted(set(weight_map.values()))), weight_map=weight_map)


class Checkpoint:
    """An open checkpoint: checked headers and one descriptor per shard. A context manager.

    Only headers are read on opening. Errors: `PackError` naming the shard and the field.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder)
        plan = read_shard_plan(folder)
        self._descriptors: dict[str, int] = {}
        self._identities: dict[str, tuple[int, int]] = {}
        self.shards: dict[str, TensorFile] = {}
        try:
            for shard in plan.shards:
                self._open(shard)
            self._places = self._place(plan)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every shard; reading is over."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    @property
    def tensors(self) -> Mapping[str, tuple[str, TensorSlot]]:
        """Tensor name -> (shard, slot)."""
        return self._places

    def descriptor(self, shard: str) -> int:
        """The open descriptor of a shard, for hashing."""
        return self._descriptors[shard]

    def stream(self, name: str) -> Iterator[bytes]:
        """The bytes of one tensor in order, at most `CHUNK` at a time."""
        shard, slot = self._places[name]
        end = slot.offset + slot.size
        for position in range(slot.offset, end, CHUNK):
            wanted = min(CHUNK, end - position)
            chunk = os.pread(self._descriptors[shard], wanted, position)
            if len(chunk) != wanted:
                raise PackError(f"{self.folder / shard}: became shorter while it was read")
            yield chunk

    def check_unchanged(self) -> None:
        """Raise `PackError` when a shard was written to since it was opened."""
        for shard, identity in self._identities.items():
            if self._identity(shard) != identity:
                raise PackError(f"{self.folder / shard}: changed while it was being packed; fetch it again")

    def _open(self, shard: str) -> None:
        if not (self.folder / shard).exists():
            raise PackError(
                f"{self.folder}: shard {shard} is missing; fetch the model again{self._pickle_hint()}"
            )
        self._descriptors[shard] = open_regular(self.folder, shard)
        self.shards[shard] = read_tensor_file(self._descriptors[shard], str(self.folder / shard))
        self._identities[shard] = self._identity(shard)

    def _identity(self, shard: str) -> tuple[int, int]:
        status = os.fstat(self._descriptors[shard])
        return status.st_size, status.st_mtime_ns

    def _place(self, plan: ShardPlan) -> dict[str, tuple[str, TensorSlot]]:
        places: dict[str, tuple[str, TensorSlot]] = {}
        for shard, file in self.shards.items():
            for name, slot in file.slots.items():
                if name in places:
                    raise PackError(f"{self.folder / shard}: tensor {name!r}: also in {places[name][0]}")
                if plan.weight_map is not None and plan.weight_map.get(name) != shard:
                    raise PackError(
                        f"{self.folder / INDEX}: tensor {name!r}: lies in {shard}, not where the index says"
                    )
                places[name] = (shard, slot)
        for name in plan.weight_map or {}:
            if name not in places:
                raise PackError(
                    f"{self.folder / INDEX}: tensor {name[:80]!r}: named by the index, in no shard"
                )
        return places

    def _pickle_hint(self) -> str:
        pickles = sorted(path.name for path in self.folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        return f" ({pickles[0]} may hold pickled code and is never read)" if pickles else ""
