"""Encoded packs: what lies in them, what the strict reader refuses, and that nothing of them is official."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from kernels.encodings import ENCODINGS, FOUR_BIT, Encoding, encoded
from kernels.encodings.reference import decode
from lean.contracts import encoded_contract, load_contract
from lean.demo import CHECKPOINT_DIR
from lean.errors import ContractError, PackError, UsageError
from lean.leanpack import Pack, open_pack, read_manifest
from lean.leanpack.__main__ import main
from lean.leanpack.build import BuildRequest, build_pack
from lean.leanpack.verify import verify_pack

CODED = ENCODINGS[1:]
TINY = load_contract("tiny-cpu")
QKV = "layers.0.attention.qkv"
MATRICES = ("attention.qkv", "attention.output", "mlp.gate_up", "mlp.down")
Words = list[str]


def build(made_of: Encoding, packs: Path, **changes: Any) -> Pack:
    contract = encoded_contract(TINY, made_of)
    values = {"model": CHECKPOINT_DIR, "contract": contract, "encoding": made_of, "target": "cpu"}
    return open_pack(build_pack(BuildRequest(**(values | {"packs": packs} | changes))).path)


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[Encoding, Pack]:
    """The demo in every encoding."""
    folder = tmp_path_factory.mktemp("packs")
    return {encoding: build(encoding, folder) for encoding in ENCODINGS}


def stored(pack: Pack, name: str) -> torch.Tensor:
    """A tensor by safetensors' own reader, aliases followed by hand."""
    record = next(t for t in pack.manifest.tensors if t.name == pack.manifest.aliases.get(name, name))
    with safe_open(pack.path / record.file, "pt") as file:
        return file.get_tensor(record.name)


def matrix(pack: Pack, name: str) -> torch.Tensor:
    encoding = pack.manifest.contract.encoding
    if encoding == "bf16":
        return stored(pack, name).float()
    parts = [stored(pack, name), stored(pack, f"{name}.scale")]
    parts += [stored(pack, f"{name}.table")] if encoding in FOUR_BIT else []
    return decode(encoding, *parts)


@pytest.mark.parametrize("encoding", CODED)
def test_every_matrix_comes_back_close_to_the_bf16_packs(
    packs: dict[Encoding, Pack], encoding: Encoding
) -> None:
    names = ["head", *(f"layers.{layer}.{role}" for layer in range(4) for role in MATRICES)]
    most = 0.03 if encoding == "fp8-e4m3" else 0.12  # relative: what encoding alone costs, see its tests
    for name in names:
        expected = matrix(packs["bf16"], name)
        found = matrix(packs[encoding], name)
        assert float((found - expected).norm() / expected.norm()) < most


@pytest.mark.parametrize("encoding", CODED)
def test_norms_and_the_embedding_stay_bf16_bit_for_bit(
    packs: dict[Encoding, Pack], encoding: Encoding
) -> None:
    plain, coded = packs["bf16"], packs[encoding]
    for record in plain.manifest.tensors:
        if not record.name.endswith(MATRICES):
            assert np.array_equal(coded.tensor(record.name), plain.tensor(record.name))


@pytest.mark.parametrize("encoding", CODED)
def test_a_tied_head_is_a_tensor_of_its_own(packs: dict[Encoding, Pack], encoding: Encoding) -> None:
    manifest = packs[encoding].manifest
    assert packs["bf16"].manifest.aliases == {"head": "embedding"}
    assert manifest.aliases == {}
    head = next(tensor for tensor in manifest.tensors if tensor.name == "head")
    assert (head.file, head.sources) == ("weights/output.safetensors", ("model.embed_tokens.weight",))


@pytest.mark.parametrize("encoding", CODED)
def test_tensors_have_the_names_types_and_shapes_of_the_encoding(
    packs: dict[Encoding, Pack], encoding: Encoding
) -> None:
    stored_as = {"e4m3": "F8_E4M3", "u32": "U32", "f32": "F32", "bf16": "BF16"}
    records = {tensor.name: tensor for tensor in packs[encoding].manifest.tensors}
    for name, rows, width in ((QKV, 1024, 256), ("layers.3.mlp.down", 256, 768), ("head", 4096, 256)):
        for array in encoded(encoding, rows, width):
            record = records[name if array.name == "codes" else f"{name}.{array.name}"]
            assert (record.dtype, record.shape, record.size, record.encoding) == (
                stored_as[array.dtype],
                array.shape,
                array.nbytes,
                encoding,
            )
            assert record.offset % 4096 == 0
    assert (records["embedding"].dtype, records["embedding"].encoding) == ("BF16", "bf16")


@pytest.mark.parametrize("encoding", CODED)
def test_the_contract_is_another_one_and_not_official(encoding: Encoding) -> None:
    official = load_contract("qwen3-4b-base-bf16-gb10")
    derived = encoded_contract(official, encoding)
    assert (derived.id, derived.encoding, derived.official) == (f"{official.id}-{encoding}", encoding, False)
    assert replace(derived, id=official.id, encoding="bf16", official=True) == official


def test_the_contracts_own_encoding_is_the_contract_and_a_second_encoding_is_refused() -> None:
    assert encoded_contract(TINY, "bf16") is encoded_contract(TINY, None) is TINY
    with pytest.raises(ContractError, match="nvfp4 is made of bf16 weights, not of fp8-e4m3"):
        encoded_contract(encoded_contract(TINY, "fp8-e4m3"), "nvfp4")
    with pytest.raises(ContractError, match="'int3' is unknown; known: bf16, fp8-e4m3, int4-codebook, nvfp4"):
        encoded_contract(TINY, "int3")


@pytest.mark.parametrize("encoding", CODED)
def test_the_program_builds_a_pack_named_by_its_encoding(
    packs: dict[Encoding, Pack], encoding: Encoding, tmp_path: Path
) -> None:
    words = ["build", "--model", str(CHECKPOINT_DIR), "--contract", "tiny-cpu", "--packs", str(tmp_path)]
    done = main([*words, "--encoding", encoding])
    assert (done["lock"], done["contract"]) == (packs[encoding].lock, f"tiny-cpu-{encoding}")
    assert Path(done["path"]).name == f"tiny-cpu-{encoding}-{done['lock'][:8]}"
    assert main([*words, "--encoding", encoding])["built"] is False
    assert main(["list", "--packs", str(tmp_path), "--contract", "tiny-cpu"])["packs"] == []
    assert verify_pack(Path(done["path"])).tensors == len(packs[encoding].manifest.tensors)


def test_an_unknown_encoding_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    words = ["--contract", "tiny-cpu", "--encoding", "int3"]
    with pytest.raises(ContractError, match="int3"):
        main(["build", "--model", str(CHECKPOINT_DIR), "--packs", str(tmp_path / "packs"), *words])
    with pytest.raises(ContractError, match="int3"):
        main(["kernels", "--out", str(tmp_path / "kernels"), *words])
    assert list(tmp_path.iterdir()) == []


def test_a_request_must_name_its_contracts_encoding(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the contract says fp8-e4m3, not bf16"):
        build("fp8-e4m3", tmp_path, encoding="bf16")


def test_a_width_that_no_tile_divides_is_refused_by_name(
    contract_of: Callable[..., Any], tmp_path: Path
) -> None:
    contract = encoded_contract(contract_of(), "nvfp4")
    with pytest.raises(
        ContractError, match=r"nvfp4: layers.0.attention.qkv: width: 48 is no multiple of 256"
    ):
        build("nvfp4", tmp_path, contract=contract, seed=1, model=None)


Manifest = dict[str, Any]


def tensor_of(manifest: Manifest, name: str) -> dict[str, Any]:
    return next(tensor for tensor in manifest["tensors"] if tensor["name"] == name)


def as_if_bf16(manifest: Manifest) -> None:
    for tensor in manifest["tensors"]:
        tensor["encoding"] = "bf16"


REFUSED: list[tuple[str, Callable[[Manifest], object], str]] = [
    ("dtype", lambda m: tensor_of(m, QKV).update(dtype="BF16"), f"{QKV}: dtype: expected 'U32', got 'BF16'"),
    ("shape", lambda m: tensor_of(m, QKV).update(shape=[1024, 33]), rf"{QKV}: shape: expected \[1024, 32\]"),
    (
        "encoding",
        lambda m: tensor_of(m, f"{QKV}.scale").update(encoding="nvfp4"),
        f"{QKV}.scale: encoding: expected 'int4-codebook'",
    ),
    ("all encodings", as_if_bf16, f"{QKV}: encoding: expected 'int4-codebook'"),
    ("no table", lambda m: m["tensors"].remove(tensor_of(m, f"{QKV}.table")), "tensors: not the tensors of"),
    ("an alias", lambda m: m["aliases"].update(head="embedding"), "aliases: not what"),
    ("target", lambda m: m["targets"][0].update(encoding="bf16"), "encoding: expected 'int4-codebook'"),
]


@pytest.mark.parametrize(("edit", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_manifest_that_lies_about_the_encoding_is_refused(
    tmp_path: Path, reseal: Callable[..., Path], edit: Callable[[Manifest], object], message: str
) -> None:
    with pytest.raises(PackError, match=message) as refused:
        open_pack(reseal(writable(build("int4-codebook", tmp_path)), edit))
    assert "manifest.json" in str(refused.value)


def test_a_weight_file_with_another_type_than_the_manifests_is_refused(
    tmp_path: Path, reseal: Callable[..., Path]
) -> None:
    path = writable(build("fp8-e4m3", tmp_path))
    file = path / "weights" / "layer-000.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"F8_E4M3"', b'"F8_E5M2"', 1))
    with pytest.raises(
        PackError, match=r"layer-000.*qkv': dtype: header says F8_E5M2, manifest says F8_E4M3"
    ):
        open_pack(reseal(path))


def writable(pack: Pack) -> Path:
    """The pack's folder under a name that carries no hash, its files open to whoever tampers with them."""
    for file in pack.path.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    return pack.path


@pytest.mark.parametrize("encoding", CODED)
def test_a_random_pack_is_its_bf16_numbers_encoded(encoding: Encoding, tmp_path: Path) -> None:
    plain = build("bf16", tmp_path, model=None, seed=5)
    coded = build(encoding, tmp_path, model=None, seed=5)
    assert (coded.manifest.weights, coded.manifest.source.seed) == ("random", 5)
    for name in (QKV, "head"):
        expected = matrix(plain, name)
        assert float((matrix(coded, name) - expected).norm() / expected.norm()) < 0.12


def test_what_would_be_built_is_said_without_building_it(tmp_path: Path) -> None:
    words = ["--contract", "tiny-cpu", "--packs", str(tmp_path), "--encoding", "nvfp4", "--manifest-only"]
    said = main(["build", "--random", "1", *words])
    built = build("nvfp4", tmp_path, model=None, seed=1)
    assert said["weight_bytes"] == built.manifest.weight_bytes == read_manifest(built.path)[0].weight_bytes
    assert json.loads(json.dumps(said))["manifest"]["contract"]["id"] == "tiny-cpu-nvfp4"
