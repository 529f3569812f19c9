"""Writing one weight file: an ordinary safetensors file whose tensors all start at a multiple of 4096 bytes.

safetensors allows no holes and takes a header padded with blanks. So the header is padded until the data
starts at a multiple of `ALIGNMENT`, and the room up to the next tensor is a tensor of its own, `__pad.<n>`,
U8 and all zero.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from lean.leanpack.layout import ALIGNMENT, PlannedTensor
from lean.leanpack.tensor_file import ITEM_BYTES

PAD_PREFIX = "__pad."


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFilePlan:
    """A file before it exists. `header` is written as it stands; `offsets` in bytes from the file's start."""

    name: str
    header: bytes
    tensors: tuple[PlannedTensor, ...]
    offsets: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """The hashes of what was written: of the file, and of each tensor in file order."""

    sha256: str
    tensor_sha256: tuple[str, ...]


def plan_weight_files(tensors: Iterable[PlannedTensor]) -> tuple[WeightFilePlan, ...]:
    """Group tensors by file and give each its place."""
    grouped: dict[str, list[PlannedTensor]] = {}
    for tensor in tensors:
        grouped.setdefault(tensor.file, []).append(tensor)
    return tuple(_plan(name, tuple(members)) for name, members in grouped.items())


def tensor_bytes(tensor: PlannedTensor) -> int:
    """Size of the stored tensor in bytes."""
    return math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]


def _plan(name: str, tensors: tuple[PlannedTensor, ...]) -> WeightFilePlan:
    entries: dict[str, Any] = {"__metadata__": {"format": "leanpack/v1"}}
    starts: list[int] = []
    position = 0
    for index, tensor in enumerate(tensors):
        gap = -position % ALIGNMENT
        if gap:
            entries[f"{PAD_PREFIX}{index}"] = {
                "dtype": "U8",
                "shape": [gap],
                "data_offsets": [position, position + gap],
            }
            position += gap
        starts.append(position)
        end = position + tensor_bytes(tensor)
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = struct.pack("<Q", len(text)) + text
    return WeightFilePlan(
        name=name,
        header=header,
        tensors=tensors,
        offsets=tuple(len(header) + start for start in starts),
        size=len(header) + position,
    )


def write_weight_file(
    plan: WeightFilePlan, out: BinaryIO, contents: Callable[[PlannedTensor], Iterator[bytes]]
) -> WrittenFile:
    """Stream the file into `out`; `contents` yields a tensor's bytes. Memory: one chunk."""
    whole = hashlib.sha256()
    hashes: list[str] = []

    def put(data: bytes) -> None:
        out.write(data)
        whole.update(data)

    put(plan.header)
    position = len(plan.header)
    for tensor, offset in zip(plan.tensors, plan.offsets, strict=True):
        put(bytes(offset - position))
        position = offset
        digest = hashlib.sha256()
        for chunk in contents(tensor):
            put(chunk)
            digest.update(chunk)
            position += len(chunk)
        hashes.append(digest.hexdigest())
    assert position == plan.size, f"{plan.name}: wrote {position} bytes of {plan.size}"
    return WrittenFile(sha256=whole.hexdigest(), tensor_sha256=tuple(hashes))
