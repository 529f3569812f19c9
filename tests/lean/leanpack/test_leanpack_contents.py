"""What is in a pack: the numbers of the checkpoint, bit by bit, in ordinary safetensors files."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lean.contracts import Contract, Geometry, load_contract
from lean.errors import PackError
from lean.leanpack import Manifest, open_pack, read_manifest, source_matches
from lean.leanpack.convert import to_bf16
from lean.leanpack.manifest import kv_layout
from lean.leanpack.snapshot import SourceFile

Make = Callable[..., Any]


def bits(tensor: torch.Tensor) -> np.ndarray:
    """What torch itself makes of the tensor in BF16, as bit patterns."""
    return tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_number_of_the_checkpoint_arrives(
    make_checkpoint: Make, contract_of: Make, tmp_path: Path, dtype: torch.dtype, tied: bool, shards: int
) -> None:
    made = make_checkpoint(contract_of(tied=tied), dtype=dtype, shards=shards)
    pack = open_pack(made.build(tmp_path / "packs").path)
    source = {name: bits(tensor) for name, tensor in made.tensors.items()}
    for i in range(made.contract.model.geometry.layers):
        layer, attention = f"model.layers.{i}.", f"model.layers.{i}.self_attn."
        expected = {
            "attention_norm": source[layer + "input_layernorm.weight"],
            "attention.qkv": np.concatenate([source[f"{attention}{n}_proj.weight"] for n in "qkv"]),
            "attention.query_norm": source[attention + "q_norm.weight"],
            "attention.key_norm": source[attention + "k_norm.weight"],
            "attention.output": source[attention + "o_proj.weight"],
            "mlp_norm": source[layer + "post_attention_layernorm.weight"],
            "mlp.gate_up": np.concatenate([source[f"{layer}mlp.{n}_proj.weight"] for n in ("gate", "up")]),
            "mlp.down": source[layer + "mlp.down_proj.weight"],
        }
        for role, values in expected.items():
            np.testing.assert_array_equal(pack.tensor(f"layers.{i}.{role}"), values, err_msg=role)
    np.testing.assert_array_equal(pack.tensor("embedding"), source["model.embed_tokens.weight"])
    np.testing.assert_array_equal(pack.tensor("final_norm"), source["model.norm.weight"])
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    np.testing.assert_array_equal(pack.tensor("head"), source[head])


def test_a_tied_head_is_the_same_memory_and_costs_no_bytes(make_checkpoint: Make, tmp_path: Path) -> None:
    pack = open_pack(make_checkpoint().build(tmp_path / "packs").path)
    assert pack.manifest.aliases == {"head": "embedding"}
    assert np.shares_memory(pack.tensor("head"), pack.tensor("embedding"))
    assert "head" not in {tensor.name for tensor in pack.manifest.tensors}


def test_views_cannot_be_written_to(pack: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        open_pack(pack).tensor("embedding")[0, 0] = 1


def test_an_unknown_tensor_name_is_an_error_that_quotes_it(pack: Path) -> None:
    with pytest.raises(PackError, match=r"'layers\.9\.mlp\.down'"):
        open_pack(pack).tensor("layers.9.mlp.down")


def test_safetensors_own_reader_accepts_every_file_and_reads_the_same(pack: Path) -> None:
    opened = open_pack(pack)
    seen = set()
    for file in sorted((pack / "weights").iterdir()):
        loaded = load_file(file)
        with safe_open(file, "pt") as reader:
            assert reader.metadata() == {"format": "leanpack/v1"}
        for name, tensor in loaded.items():
            if name.startswith("__pad."):
                assert tensor.dtype == torch.uint8
                assert not tensor.any()
                continue
            seen.add(name)
            np.testing.assert_array_equal(
                opened.tensor(name), tensor.view(torch.int16).numpy().view(np.uint16)
            )
    assert seen == {tensor.name for tensor in opened.manifest.tensors}


def test_every_tensor_starts_at_a_page(pack: Path) -> None:
    manifest, _ = read_manifest(pack)
    for tensor in manifest.tensors:
        raw = (pack / tensor.file).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        begin, end = json.loads(raw[8 : 8 + length])[tensor.name]["data_offsets"]
        assert (8 + length + begin) % 4096 == 0
        assert (tensor.offset, tensor.size) == (8 + length + begin, end - begin)


def test_one_file_per_layer_plus_embedding_and_output(pack: Path) -> None:
    assert sorted(path.name for path in (pack / "weights").iterdir()) == [
        "embedding.safetensors",
        "layer-000.safetensors",
        "layer-001.safetensors",
        "output.safetensors",
    ]


def test_the_pack_is_named_by_its_contract_and_lock(pack: Path) -> None:
    assert pack.name == "tiny-cpu-" + (pack / "LOCK").read_text()[:8]


def test_lock_is_what_the_shell_commands_of_the_format_page_compute(pack: Path) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "leanpack.md").read_text()
    script = page.split("```sh\n")[1].split("```")[0]
    shell = subprocess.run(["sh", "-ec", script], cwd=pack, capture_output=True, text=True, check=True)
    assert shell.stdout == (pack / "LOCK").read_text()


def test_the_manifest_states_where_the_weights_came_from(make_checkpoint: Make, tmp_path: Path) -> None:
    made = make_checkpoint(shards=2)
    manifest, _ = read_manifest(made.build(tmp_path / "packs").path)
    assert {file.path for file in manifest.source.files} == {path.name for path in made.path.iterdir()}
    shell = subprocess.run(
        ["sha256sum", *sorted(p.name for p in made.path.iterdir())],
        cwd=made.path,
        capture_output=True,
        text=True,
    )
    assert {file.path: file.sha256 for file in manifest.source.files} == {
        line[66:]: line[:64] for line in shell.stdout.splitlines()
    }


def test_the_key_value_layout_follows_the_published_sizes(contract_of: Make) -> None:
    geometry = Geometry(
        layers=36, hidden=2560, intermediate=9728, query_heads=32, kv_heads=8, head_dim=128, vocab=151936
    )
    layout = kv_layout(contract_of(geometry))
    assert [layout.bytes_per_position * n for n in (320, 576, 1088)] == [47_185_920, 84_934_656, 160_432_128]


def test_f32_rounds_as_torch_does_over_every_kind_of_number() -> None:
    draw = np.random.default_rng(7)
    patterns = draw.integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = (draw.integers(0, 2**16, 50_000, dtype=np.uint32) << 16) | 0x8000
    values = np.concatenate([patterns, ties, ties - 1, ties + 1]).view(np.float32)
    expected = bits(torch.from_numpy(values))
    kept = values[(expected & 0x7F80) != 0x7F80]
    got = np.frombuffer(to_bf16(kept.tobytes(), "F32", "x"), np.uint16)
    np.testing.assert_array_equal(got, expected[(expected & 0x7F80) != 0x7F80])
    assert len(kept) > 250_000


def hub_pack(manifest: Manifest, contract: Contract, **source: Any) -> Manifest:
    files = tuple(dataclasses.replace(file, hub_verified=True) for file in manifest.source.files)
    values = {"kind": "huggingface", "id": contract.model.id, "revision": "c" * 40, "files": files}
    return dataclasses.replace(
        manifest, contract=contract, source=dataclasses.replace(manifest.source, **(values | source))
    )


def test_source_matches_only_with_pinned_revision_and_hub_hashes(pack: Path, contract_of: Make) -> None:
    manifest, _ = read_manifest(pack)
    pinned = contract_of(revision="c" * 40, id="Qwen/x")
    assert source_matches(hub_pack(manifest, pinned))
    unconfirmed = (SourceFile(path="config.json", size=1, sha256="0" * 64, hub_verified=False),)
    for wrong in ({"revision": "d" * 40}, {"id": "Qwen/y"}, {"kind": "local"}, {"files": unconfirmed}):
        assert not source_matches(hub_pack(manifest, pinned, **wrong)), wrong
    assert not source_matches(hub_pack(manifest, contract_of(revision=None, id="Qwen/x")))
    assert not source_matches(dataclasses.replace(hub_pack(manifest, pinned), weights="demo"))


def test_the_format_page_shows_the_bytes_of_a_real_file(make_checkpoint: Make, tmp_path: Path) -> None:
    path = Path(make_checkpoint(load_contract("tiny-cpu")).build(tmp_path / "packs").path)
    page = (Path(__file__).resolve().parents[3] / "docs" / "leanpack.md").read_text()
    shown = " ".join(line[8:] for line in page.splitlines() if line[:8].isdigit())
    raw = (path / "weights" / "output.safetensors").read_bytes()
    assert bytes.fromhex(shown) == raw[:64]
    assert "`" + raw[8:4096].decode().rstrip() + "`" in page
    assert len(raw) == 4608
