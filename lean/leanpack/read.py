"""Opening a pack: everything checked first, then the weights mapped, never copied."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lean.errors import PackError
from lean.files.safe_path import list_regular_files, open_regular, read_small
from lean.leanpack.layout import ALIGNMENT, StoredDType
from lean.leanpack.lock import LOCK_NAME, FileRecord, hash_files, lock_of, read_lock
from lean.leanpack.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, TensorRecord, decode_manifest
from lean.leanpack.tensor_file import TensorFile, read_tensor_file
from lean.leanpack.weight_file import PAD_PREFIX

_NUMPY: dict[StoredDType, str] = {"BF16": "<u2", "F8_E4M3": "u1", "U32": "<u4", "F32": "<f4"}


@dataclass(frozen=True, slots=True)
class Pack:
    """An open pack. Views stay valid as long as they, or the pack, are referenced.

    `lock` is the 64 hexadecimal digits of LOCK; `verified` says whether every byte was hashed against it.
    """

    path: Path
    manifest: Manifest
    lock: str
    verified: bool
    _maps: dict[str, mmap.mmap]
    _records: dict[str, TensorRecord]

    @property
    def tokenizer_dir(self) -> Path:
        """The directory with tokenizer.json and its companions, in Hugging Face's layout."""
        return self.path / "tokenizer"

    def weight_file(self, name: str) -> NDArray[np.uint8]:
        """A read-only view on the whole mapped file `name`, header included."""
        return np.frombuffer(self._maps[name], dtype=np.uint8)

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view on the mapped file. Aliases are followed.

        BF16 comes as uint16 bit patterns, e4m3 as uint8 ones.

        Errors: `PackError` when the pack has no tensor of that name.
        """
        record = self._records.get(self.manifest.aliases.get(name, name))
        if record is None:
            raise PackError(f"{self.path}: no tensor named {name!r}")
        dtype = np.dtype(_NUMPY[record.dtype])
        count = record.size // dtype.itemsize
        flat = np.frombuffer(self._maps[record.file], dtype=dtype, count=count, offset=record.offset)
        return flat.reshape(record.shape)


def open_pack(path: Path | str, *, verify: bool = True) -> Pack:
    """Check a pack and map its weights.

    `verify=False` leaves out hashing the files against LOCK and nothing else. Costs no memory beyond the
    map; the time is that of one sha256 over the files, on several cores. Errors: `PackError` naming the
    file and the field.
    """
    root = Path(path)
    manifest, lock = check_pack(root, verify=verify)
    return Pack(
        path=root,
        manifest=manifest,
        lock=lock,
        verified=verify,
        _maps={name: _map_weights(root, name, manifest) for name in {t.file: None for t in manifest.tensors}},
        _records={tensor.name: tensor for tensor in manifest.tensors},
    )


def read_manifest(path: Path | str) -> tuple[Manifest, str]:
    """The manifest and the LOCK of a pack, without touching weights or hashing them. Errors: `PackError`."""
    return check_pack(Path(path), verify=False)


def check_pack(root: Path, *, verify: bool) -> tuple[Manifest, str]:
    """Check the directory, LOCK and manifest; with `verify` every file's hash. Errors: `PackError`."""
    if not root.is_dir():
        raise PackError(f"{root}: is no directory; name a pack such as packs/<contract>-<lock8>")
    present = list_regular_files(root)
    for name in (LOCK_NAME, MANIFEST_NAME):
        if name not in present:
            raise PackError(f"{root}: {name} is missing; this is no leanpack, or only a part of one")
    lock = read_lock(root)
    raw = read_small(root, MANIFEST_NAME, MAX_MANIFEST_BYTES)
    manifest = decode_manifest(raw, root / MANIFEST_NAME)
    _compare_listing(root, present, manifest)
    if verify:
        _compare_hashes(root, manifest, lock)
    return manifest, lock


def _compare_listing(root: Path, present: dict[str, int], manifest: Manifest) -> None:
    listed = {file.path: file.size for file in manifest.files}
    for name in sorted(set(present) - set(listed) - {LOCK_NAME, MANIFEST_NAME}):
        raise PackError(f"{root / name}: does not belong into this pack; remove it")
    for name, size in listed.items():
        if name not in present:
            raise PackError(f"{root / name}: is missing; copy the pack again")
        if present[name] != size:
            raise PackError(
                f"{root / name}: {present[name]} bytes, the manifest says {size}; truncated or altered"
            )


def _compare_hashes(root: Path, manifest: Manifest, lock: str) -> None:
    found = hash_files(root, [MANIFEST_NAME, *(file.path for file in manifest.files)])
    for record, expected in zip(found[1:], manifest.files, strict=True):
        if record != expected:
            raise PackError(f"{root / record.path}: sha256 is not the manifest's; the file was altered")
    if lock_of(found) != lock:
        raise PackError(f"{root}: LOCK does not match the files; {MANIFEST_NAME} or {LOCK_NAME} was altered")


def _map_weights(root: Path, name: str, manifest: Manifest) -> mmap.mmap:
    descriptor = open_regular(root, name)
    try:
        header = read_tensor_file(descriptor, str(root / name))
        expected = [tensor for tensor in manifest.tensors if tensor.file == name]
        _compare_header(header, expected, root / name)
        _compare_size(header, manifest.files, root / name, name)
        return mmap.mmap(descriptor, header.size, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


def _compare_header(header: TensorFile, expected: list[TensorRecord], path: Path) -> None:
    stored = [slot for slot in header.slots.values() if not slot.name.startswith(PAD_PREFIX)]
    if [slot.name for slot in stored] != [tensor.name for tensor in expected]:
        raise PackError(f"{path}: header: not the tensors that the manifest lists for this file")
    for slot, tensor in zip(stored, expected, strict=True):
        for field in ("dtype", "shape", "offset", "size"):
            got, wanted = getattr(slot, field), getattr(tensor, field)
            if got != wanted:
                raise PackError(
                    f"{path}: tensor {slot.name!r}: {field}: header says {got}, manifest says {wanted}"
                )
        if slot.offset % ALIGNMENT:
            raise PackError(
                f"{path}: tensor {slot.name!r}: offset: {slot.offset} is no multiple of {ALIGNMENT}"
            )


def _compare_size(header: TensorFile, files: tuple[FileRecord, ...], path: Path, name: str) -> None:
    size = next(file.size for file in files if file.path == name)
    if header.size != size:
        raise PackError(f"{path}: {header.size} bytes, the manifest says {size}; changed while it was opened")
