"""The header of a safetensors file, read without trusting a single field of it.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, a JSON object that may
end in blanks, then the data, which the tensors cover without holes). What safetensors' own reader refuses
is refused here too; in addition every size is bounded before anything is read.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lean.errors import PackError
from lean.files.safe_path import json_object
from lean.strict_json import MAX_INTEGER

MAX_HEADER_BYTES = 16 << 20
MAX_NAME = 512
MAX_RANK = 8
ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSlot:
    """Where one tensor lies: `offset` and `size` in bytes, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """A checked header: `slots` in file order by name.

    `data_start` and `size` in bytes from the start of the file.
    """

    slots: Mapping[str, TensorSlot]
    metadata: Mapping[str, str]
    data_start: int
    size: int


def read_tensor_file(descriptor: int, origin: str) -> TensorFile:
    """Read and check the header of an open safetensors file.

    Errors: `PackError` naming the file (`origin`), the tensor and the field.
    """
    size = os.fstat(descriptor).st_size
    if size < 10:
        raise PackError(f"{origin}: truncated: {size} bytes is no safetensors file")
    (length,) = struct.unpack("<Q", os.pread(descriptor, 8, 0))
    if length > MAX_HEADER_BYTES or length > size - 8:
        raise PackError(
            f"{origin}: header length: {length} in a file of {size} bytes, or over {MAX_HEADER_BYTES}"
        )
    raw = os.pread(descriptor, length, 8)
    if len(raw) != length or not raw.startswith(b"{"):
        raise PackError(f"{origin}: header: expected a JSON object of {length} bytes")
    document = json_object(raw, f"{origin}: header")
    metadata = _metadata(document.pop("__metadata__", {}), origin)
    data_start = 8 + length
    slots = sorted(
        (_slot(name, entry, data_start, size, origin) for name, entry in document.items()),
        key=lambda slot: (slot.offset, slot.offset + slot.size),
    )
    _check_cover(slots, data_start, size, origin)
    return TensorFile(
        slots={slot.name: slot for slot in slots}, metadata=metadata, data_start=data_start, size=size
    )


def _metadata(value: Any, origin: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise PackError(f"{origin}: __metadata__: expected an object of strings")
    return value


def _slot(name: str, entry: Any, data_start: int, file_size: int, origin: str) -> TensorSlot:
    where = f"{origin}: tensor {name[:80]!r}"
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise PackError(f"{where}: name: expected 1 to {MAX_NAME} printable characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise PackError(f"{where}: expected exactly dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise PackError(f"{where}: dtype: unknown {str(dtype)[:40]!r}")
    shape = _integers(entry["shape"], f"{where}: shape", MAX_RANK)
    if math.prod(shape) > MAX_INTEGER:
        raise PackError(f"{where}: shape: overflow: {list(shape)} has more elements than 64 bits count")
    offsets = _integers(entry["data_offsets"], f"{where}: data_offsets", 2)
    if len(offsets) != 2:
        raise PackError(f"{where}: data_offsets: expected [begin, end], got {len(offsets)} numbers")
    begin, end = offsets
    if begin > end or end > file_size - data_start:
        raise PackError(
            f"{where}: data_offsets: [{begin}, {end}] leave the {file_size - data_start} bytes of data"
        )
    wanted = math.prod(shape) * ITEM_BYTES[dtype]
    if wanted != end - begin:
        raise PackError(
            f"{where}: shape: {list(shape)} of {dtype} needs {wanted} bytes, data_offsets give {end - begin}"
        )
    return TensorSlot(name=name, dtype=dtype, shape=shape, offset=data_start + begin, size=end - begin)


def _integers(value: Any, where: str, most: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > most:
        raise PackError(f"{where}: expected a list of at most {most} integers")
    if not all(type(item) is int and item >= 0 for item in value):
        raise PackError(f"{where}: expected integers that are not negative, got {str(value)[:80]}")
    return tuple(value)


def _check_cover(slots: list[TensorSlot], data_start: int, file_size: int, origin: str) -> None:
    position = data_start
    for slot in slots:
        if slot.offset != position:
            problem = "overlaps the tensor before it" if slot.offset < position else "leaves a hole before it"
            raise PackError(f"{origin}: tensor {slot.name[:80]!r}: data_offsets: {problem}")
        position = slot.offset + slot.size
    if position != file_size:
        raise PackError(
            f"{origin}: {file_size - position} bytes after the last tensor; truncated header or altered"
        )
