"""Manifests that lie, and manifests that are no honest JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lean.errors import PackError
from lean.leanpack import open_pack
from lean.leanpack.verify import verify_pack
from lean.strict_json import parse_json

QKV = "layers.0.attention.qkv"
Manifest = dict[str, Any]
Reseal = Callable[..., Path]


MANIFESTS: list[tuple[str, Callable[[Manifest], object], str]] = [
    ("schema", lambda m: m.update(schema="leanpack/v2"), "schema: expected 'leanpack/v1', got 'leanpack/v2'"),
    ("unknown key", lambda m: m.update(extra=1), "extra: unknown key"),
    ("missing key", lambda m: m.pop("kv"), "kv: missing"),
    (
        "contract",
        lambda m: m["contract"]["model"]["geometry"].update(layers=3),
        "contract_sha256: not the hash",
    ),
    ("contract hash", lambda m: m.update(contract_sha256="0" * 64), "contract_sha256: not the hash"),
    ("weights", lambda m: m.update(weights="real"), "weights: expected one of checkpoint, random, demo"),
    ("source kind", lambda m: m["source"].update(kind="ftp"), "source.kind: expected one of"),
    ("source file", lambda m: m["source"]["files"][0].pop("sha256"), r"source.files\[0\].sha256: missing"),
    ("buckets", lambda m: m["buckets"].pop(), "buckets: not the contract's"),
    ("kv", lambda m: m["kv"].update(layers=1), "kv: not what the contract's geometry gives"),
    ("alias", lambda m: m["aliases"].update(head="layers.0.mlp.down"), "aliases: not what"),
    ("alias away", lambda m: m["aliases"].clear(), "aliases: not what"),
    ("no targets", lambda m: m["targets"].clear(), "targets: expected at least one"),
    (
        "runner",
        lambda m: m["targets"][0].update(runner="shell"),
        "targets.0..runner: expected one of torch, cuda",
    ),
    ("tensor away", lambda m: m["tensors"].pop(), "tensors: not the tensors of the contract"),
    (
        "tensor twice",
        lambda m: m["tensors"].append(m["tensors"][0]),
        "tensors: not the tensors of the contract",
    ),
    ("tensor name", lambda m: m["tensors"][1].update(name="x"), "tensors: not the tensors of the contract"),
    (
        "shape",
        lambda m: m["tensors"][2].update(shape=[1, 1]),
        rf"{QKV}: shape: expected \[128, 48\], got \[1, 1\]",
    ),
    ("role", lambda m: m["tensors"][2].update(role="mlp"), f"{QKV}: role: expected 'attention.qkv'"),
    ("encoding", lambda m: m["tensors"][2].update(encoding="nvfp4"), f"{QKV}: encoding: expected 'bf16'"),
    ("dtype", lambda m: m["tensors"][2].update(dtype="F32"), f"{QKV}: dtype: expected 'BF16', got 'F32'"),
    ("dtype nobody has", lambda m: m["tensors"][2].update(dtype="F64"), r"tensors.2..dtype: expected one of"),
    ("file", lambda m: m["tensors"][2].update(file="../../x"), f"{QKV}: file: expected"),
    ("sources", lambda m: m["tensors"][2].update(sources=[]), f"{QKV}: sources: expected"),
    ("offset", lambda m: m["tensors"][2].update(offset=0), r"offset: header says \d+, manifest says 0"),
    ("negative offset", lambda m: m["tensors"][2].update(offset=-4096), "offset: header says"),
    ("size", lambda m: m["tensors"][2].update(size=1 << 60), r"size: header says \d+, manifest says"),
    ("tensor hash form", lambda m: m["tensors"][2].update(sha256="xyz"), "sha256: expected 64 hexadecimal"),
    ("file away", lambda m: m["files"].pop(), "files: weights/output.safetensors is missing"),
    (
        "file twice",
        lambda m: m["files"].append(m["files"][-1]),
        "files: expected sorted paths without repeats",
    ),
    ("file order", lambda m: m["files"].reverse(), "files: expected sorted paths"),
    ("file leaves", lambda m: add_file(m, "tokenizer/../../x.json"), "files: unsafe file name"),
    ("absolute file", lambda m: add_file(m, "/etc/passwd"), "files: /etc/passwd does not belong"),
    ("pickle", lambda m: add_file(m, "tokenizer/x.pkl"), "files: tokenizer/x.pkl does not belong"),
    ("python", lambda m: add_file(m, "tokenizer/x.py"), "files: tokenizer/x.py does not belong"),
    ("itself", lambda m: add_file(m, "manifest.json"), "manifest.json and LOCK do not list themselves"),
    ("absent file", lambda m: add_file(m, "tokenizer/x.json"), "tokenizer/x.json: is missing"),
    ("file size", lambda m: m["files"][0].update(size=-1), "files: negative size"),
    ("file hash", lambda m: m["files"][0].update(sha256="0" * 64), "sha256 is not the manifest's"),
    ("text for a list", lambda m: m.update(tensors="x"), "tensors: expected a list"),
    ("text for a number", lambda m: m["kv"].update(layers="2"), "kv.layers: expected int, got '2'"),
    ("bool for a number", lambda m: m["kv"].update(layers=True), "kv.layers: expected int, got True"),
]


def add_file(manifest: Manifest, path: str) -> None:
    manifest["files"].append({"path": path, "size": 1, "sha256": "0" * 64})
    manifest["files"].sort(key=lambda file: file["path"])


@pytest.mark.parametrize(
    ("edit", "message"), [row[1:] for row in MANIFESTS], ids=[row[0] for row in MANIFESTS]
)
def test_a_lying_manifest_is_refused_naming_the_field(
    pack: Path, reseal: Reseal, edit: Callable[[Manifest], object], message: str
) -> None:
    sealed = reseal(pack, edit)
    with pytest.raises(PackError, match=message) as caught:
        open_pack(sealed)
    assert str(sealed) in str(caught.value)


def test_a_wrong_tensor_hash_is_found_by_the_long_check(pack: Path, reseal: Reseal) -> None:
    sealed = reseal(pack, lambda m: m["tensors"][2].update(sha256="0" * 64))
    with pytest.raises(PackError, match=f"'{QKV}': sha256"):
        verify_pack(sealed)


TEXTS = {
    "empty": (lambda text: b"", "not JSON"),
    "half": (lambda text: text[: len(text) // 2], "not JSON"),
    "duplicate": (lambda text: b'{"schema": "a", ' + text.lstrip()[1:], "duplicate key 'schema'"),
    "inner duplicate": (
        lambda text: text.replace(b'"vocab": 96', b'"vocab": 96, "vocab": 96'),
        "duplicate key 'vocab'",
    ),
    "NaN": (lambda text: text.replace(b'"vocab": 96', b'"vocab": NaN'), "NaN is not a JSON number"),
    "infinity": (lambda text: text.replace(b'"vocab": 96', b'"vocab": 1e999'), "number 1e999 is too large"),
    "giant": (
        lambda text: text.replace(b'"vocab": 96', b'"vocab": 9' + b"9" * 5000),
        "does not fit in 64 bits",
    ),
    "deep": (lambda text: b'{"a":' * 100_000, "nested deeper"),
    "list": (lambda text: b"[]", "expected a JSON object"),
    "latin-1": (lambda text: text.replace(b"tiny-cpu", b"tiny-\xe9"), "not UTF-8"),
    "giant geometry": (
        lambda text: text.replace(b'"vocab": 96', b'"vocab": 9223372036854775807'),
        "contract_sha256",
    ),
    "too large": (lambda text: text + b" " * (17 << 20), "bytes; expected at most"),
}


@pytest.mark.parametrize(("damage", "message"), TEXTS.values(), ids=TEXTS)
def test_a_manifest_that_is_no_honest_json_is_refused(
    pack: Path, relock: Callable[[Path, bytes], Path], damage: Callable[[bytes], bytes], message: str
) -> None:
    text = json.dumps(json.loads((pack / "manifest.json").read_text())).encode()
    changed = damage(text)
    assert changed != text
    sealed = relock(pack, changed)
    with pytest.raises(PackError, match=f"manifest.json: .*{message}"):
        open_pack(sealed)


def test_json_numbers_keep_their_value_up_to_64_bits() -> None:
    assert parse_json(b'[9223372036854775807, -9223372036854775807, 0.5, "\\u00e9"]') == [
        2**63 - 1,
        1 - 2**63,
        0.5,
        "é",
    ]
