"""Weight files whose header lies: each field of each tensor, refused by the name of file and field."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lean.errors import PackError
from lean.leanpack import open_pack
from lean.leanpack.checkpoint import Checkpoint
from lean.leanpack.verify import verify_pack

LAYER = "weights/layer-000.safetensors"
QKV = "layers.0.attention.qkv"
Header = dict[str, Any]
Make = Callable[..., Any]
Reseal = Callable[..., Path]


def split(path: Path) -> tuple[Header, bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(header: bytes, data: bytes) -> bytes:
    header += b" " * (-(8 + len(header)) % 4096)
    return struct.pack("<Q", len(header)) + header + data


def edit_header(path: Path, edit: Callable[[Header], object]) -> None:
    header, data = split(path)
    edit(header)
    path.write_bytes(join(json.dumps(header).encode(), data))


def test_sealing_again_without_a_change_gives_a_sound_pack(pack: Path, reseal: Reseal) -> None:
    assert verify_pack(reseal(pack)).tensors == 18


HEADERS: list[tuple[str, Callable[[Header], object], str]] = [
    (
        "negative offset",
        lambda h: h[QKV].update(data_offsets=[-4096, 0]),
        r"data_offsets: expected integers that are not",
    ),
    ("overlap", lambda h: shift(h, QKV, -4096), "data_offsets: overlaps the tensor before it"),
    ("hole", lambda h: h.pop("__pad.1"), "data_offsets: leaves a hole before it"),
    ("past the end", lambda h: shift(h, QKV, 1 << 40), r"data_offsets: \[\d+, \d+\] leave the \d+ bytes"),
    ("backwards", lambda h: h[QKV].update(data_offsets=[8192, 4096]), r"data_offsets: \[8192, 4096\] leave"),
    ("overflow", lambda h: h[QKV].update(data_offsets=[0, 2**63]), "does not fit in 64 bits"),
    ("one offset", lambda h: h[QKV].update(data_offsets=[0]), "data_offsets: expected .begin, end."),
    ("float offset", lambda h: h[QKV].update(data_offsets=[0.0, 1.0]), "data_offsets: expected integers"),
    ("bool offset", lambda h: h[QKV].update(data_offsets=[False, True]), "data_offsets: expected integers"),
    ("text offset", lambda h: h[QKV].update(data_offsets="0"), "data_offsets: expected a list"),
    ("unknown dtype", lambda h: h[QKV].update(dtype="BF17"), "dtype: unknown 'BF17'"),
    ("dtype of another type", lambda h: h[QKV].update(dtype=["BF16"]), "dtype: unknown"),
    (
        "dtype of the same size",
        lambda h: h[QKV].update(dtype="F16"),
        "dtype: header says F16, manifest says BF16",
    ),
    (
        "larger shape",
        lambda h: h[QKV].update(shape=[1 << 30, 48]),
        r"shape: \[1073741824, 48\] of BF16 needs",
    ),
    ("overflowing shape", lambda h: h[QKV].update(shape=[2**62, 2**62]), "shape: overflow"),
    (
        "negative shape",
        lambda h: h[QKV].update(shape=[-128, -48]),
        "shape: expected integers that are not negative",
    ),
    ("turned shape", lambda h: h[QKV].update(shape=[48, 128]), r"shape: header says \(48, 128\), manifest"),
    ("many dimensions", lambda h: h[QKV].update(shape=[1] * 9), "shape: expected a list of at most 8"),
    ("no shape", lambda h: h[QKV].pop("shape"), "expected exactly dtype, shape and data_offsets"),
    ("surplus field", lambda h: h[QKV].update(code="x"), "expected exactly dtype, shape and data_offsets"),
    ("entry of another type", lambda h: h.update({QKV: 7}), "expected exactly dtype, shape and data_offsets"),
    ("other name", lambda h: h.update({"evil": h.pop(QKV)}), "not the tensors that the manifest lists"),
    ("long name", lambda h: h.update({"n" * 600: h.pop(QKV)}), "name: expected 1 to 512 printable"),
    (
        "name with an escape",
        lambda h: h.update({"a\u001bb": h.pop(QKV)}),
        "name: expected 1 to 512 printable",
    ),
    ("metadata", lambda h: h.update(__metadata__=[1]), "__metadata__: expected an object of strings"),
    (
        "metadata number",
        lambda h: h.update(__metadata__={"a": 1}),
        "__metadata__: expected an object of strings",
    ),
    ("nothing", lambda h: h.clear(), "bytes after the last tensor"),
]


def shift(header: Header, name: str, by: int) -> None:
    header[name]["data_offsets"] = [offset + by for offset in header[name]["data_offsets"]]


@pytest.mark.parametrize(("edit", "message"), [row[1:] for row in HEADERS], ids=[row[0] for row in HEADERS])
def test_a_lying_weight_header_is_refused_naming_file_and_field(
    pack: Path, reseal: Reseal, edit: Callable[[Header], object], message: str
) -> None:
    edit_header(pack / LAYER, edit)
    sealed = reseal(pack)
    with pytest.raises(PackError, match=message) as caught:
        open_pack(sealed)
    assert LAYER in str(caught.value)
    assert caught.value.exit_code == 8


def test_a_moved_tensor_is_refused_because_the_page_matters(pack: Path, reseal: Reseal) -> None:
    """The file stays sound for safetensors, and the manifest agrees with it; only the alignment is lost."""
    path = pack / LAYER
    header, data = split(path)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    start = 8 + len(text)

    def follow(manifest: dict[str, Any]) -> None:
        for tensor in manifest["tensors"]:
            if tensor["file"] == LAYER:
                tensor["offset"] = start + header[tensor["name"]]["data_offsets"][0]

    with pytest.raises(PackError, match=r"offset: \d+ is no multiple of 4096"):
        open_pack(reseal(pack, follow))


RAW_HEADERS = {
    "length zero": (lambda raw: bytes(8) + raw[8:], "header: expected a JSON object"),
    "length past the end": (lambda raw: struct.pack("<Q", len(raw)) + raw[8:], "header length"),
    "length of 2^64-1": (lambda raw: b"\xff" * 8 + raw[8:], "header length"),
    "length too short": (lambda raw: struct.pack("<Q", 100) + raw[8:], "header: not JSON"),
    "blank first": (lambda raw: raw[:8] + b" " + raw[9:], "header: expected a JSON object"),
    "a list": (lambda raw: join(b"[]", raw[4096:]), "header: expected a JSON object"),
    "NaN": (lambda raw: join(b'{"a": NaN}', b""), "NaN is not a JSON number"),
    "giant integer": (lambda raw: join(b'{"a": 1' + b"0" * 5000 + b"}", b""), "does not fit in 64 bits"),
    "deep": (lambda raw: join(b'{"a": ' + b"[" * 100_000, b""), "nested deeper"),
    "deep and closed": (lambda raw: join(b'{"a": ' + b"[" * 50 + b"]" * 50 + b"}", b""), "nested deeper"),
    "double": (lambda raw: join(b'{"a": 1, "a": 2}', b""), "duplicate key 'a'"),
    "not UTF-8": (lambda raw: join(b'{"\xff": 1}', b""), "not UTF-8"),
    "surrogate": (lambda raw: join(b'{"\\ud800": 1}', b""), "lone surrogate"),
    "empty file": (lambda raw: b"", "truncated: 0 bytes"),
    "seven bytes": (lambda raw: raw[:7], "truncated: 7 bytes"),
    "header only": (lambda raw: raw[:4096], r"data_offsets: .* leave the \d+ bytes"),
    "one byte short": (lambda raw: raw[:-1], "data_offsets"),
    "one byte more": (lambda raw: raw + b"x", "1 bytes after the last tensor"),
}


@pytest.mark.parametrize(("damage", "message"), RAW_HEADERS.values(), ids=RAW_HEADERS)
def test_a_broken_weight_file_is_refused_naming_it(
    pack: Path, reseal: Reseal, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = pack / LAYER
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PackError, match=message) as caught:
        open_pack(reseal(pack))
    assert LAYER in str(caught.value)


@pytest.mark.parametrize(("damage", "message"), RAW_HEADERS.values(), ids=RAW_HEADERS)
def test_a_broken_checkpoint_shard_is_refused_in_the_same_way(
    make_checkpoint: Make, damage: Callable[[bytes], bytes], message: str
) -> None:
    shard = make_checkpoint().path / "model.safetensors"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(PackError, match=rf"model\.safetensors: .*{message}"):
        Checkpoint(shard.parent)


def test_a_giant_header_is_refused_before_memory_is_taken_for_it(pack: Path) -> None:
    path = pack / LAYER
    path.write_bytes(struct.pack("<Q", 1 << 33) + b"{")
    os.truncate(path, 1 << 34)  # a hole: 16 GiB that lie on no disk
    manifest = json.loads((pack / "manifest.json").read_text())
    next(file for file in manifest["files"] if file["path"] == LAYER)["size"] = 1 << 34
    (pack / "manifest.json").write_text(json.dumps(manifest))
    tracemalloc.start()
    try:
        with pytest.raises(PackError, match="header length: 8589934592"):
            open_pack(pack, verify=False)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
