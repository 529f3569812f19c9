"""Random checkpoints in Hugging Face's layout, and packs made of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lean.contracts import Contract, Geometry, load_contract
from lean.leanpack.build import BuildRequest, build_pack
from lean.leanpack.sealing import BuildReport

SMALL = Geometry(layers=2, hidden=48, intermediate=80, query_heads=4, kv_heads=2, head_dim=16, vocab=96)


def contract_for(geometry: Geometry = SMALL, *, tied: bool = True, **model: Any) -> Contract:
    """The tiny contract with another geometry."""
    base = load_contract("tiny-cpu")
    return dataclasses.replace(
        base, model=dataclasses.replace(base.model, geometry=geometry, tied_head=tied, **model)
    )


def source_shapes(contract: Contract) -> dict[str, tuple[int, ...]]:
    """Names and shapes of transformers' Qwen3ForCausalLM, written out here by hand as the oracle."""
    g = contract.model.geometry
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (g.vocab, g.hidden)}
    for i in range(g.layers):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (g.hidden,),
            f"{layer}.self_attn.q_proj.weight": (g.query_heads * g.head_dim, g.hidden),
            f"{layer}.self_attn.k_proj.weight": (g.kv_heads * g.head_dim, g.hidden),
            f"{layer}.self_attn.v_proj.weight": (g.kv_heads * g.head_dim, g.hidden),
            f"{layer}.self_attn.q_norm.weight": (g.head_dim,),
            f"{layer}.self_attn.k_norm.weight": (g.head_dim,),
            f"{layer}.self_attn.o_proj.weight": (g.hidden, g.query_heads * g.head_dim),
            f"{layer}.post_attention_layernorm.weight": (g.hidden,),
            f"{layer}.mlp.gate_proj.weight": (g.intermediate, g.hidden),
            f"{layer}.mlp.up_proj.weight": (g.intermediate, g.hidden),
            f"{layer}.mlp.down_proj.weight": (g.hidden, g.intermediate),
        }
    shapes["model.norm.weight"] = (g.hidden,)
    if not contract.model.tied_head:
        shapes["lm_head.weight"] = (g.vocab, g.hidden)
    return shapes


def config_for(contract: Contract) -> dict[str, Any]:
    g, model = contract.model.geometry, contract.model
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_hidden_layers": g.layers,
        "hidden_size": g.hidden,
        "intermediate_size": g.intermediate,
        "num_attention_heads": g.query_heads,
        "num_key_value_heads": g.kv_heads,
        "head_dim": g.head_dim,
        "vocab_size": g.vocab,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tied_head,
    }


@dataclass
class Made:
    """A checkpoint on disk and what is in it."""

    path: Path
    contract: Contract
    tensors: dict[str, torch.Tensor]

    def write(self, shards: int = 1) -> None:
        """(Re)write the weights, spread over `shards` files with an index when there are several."""
        for old in self.path.glob("*.safetensors*"):
            old.unlink()
        if shards == 1:
            save_file(self.tensors, self.path / "model.safetensors", metadata={"format": "pt"})
            return
        weight_map = {}
        names = list(self.tensors)
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: self.tensors[name] for name in names[i::shards]}
            save_file(part, self.path / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (self.path / "model.safetensors.index.json").write_text(json.dumps(index))

    def configure(self, **changes: Any) -> None:
        """Rewrite config.json with some values changed."""
        (self.path / "config.json").write_text(json.dumps(config_for(self.contract) | changes))

    def request(self, packs: Path, **changes: Any) -> BuildRequest:
        values = {"model": self.path, "contract": self.contract, "packs": packs, "encoding": "bf16"}
        return BuildRequest(**(values | {"target": "cpu"} | changes))

    def build(self, packs: Path, **changes: Any) -> BuildReport:
        return build_pack(self.request(packs, **changes))


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Made]:
    """make_checkpoint(contract=…, dtype=…, shards=…) -> Made."""

    def make(
        contract: Contract | None = None,
        *,
        dtype: torch.dtype = torch.bfloat16,
        shards: int = 1,
        folder: str = "model",
        seed: int = 0,
    ) -> Made:
        contract = contract or contract_for()
        path = tmp_path / folder
        path.mkdir()
        draw = torch.Generator().manual_seed(seed)
        tensors = {
            name: torch.randn(shape, generator=draw).to(dtype)
            for name, shape in source_shapes(contract).items()
        }
        made = Made(path=path, contract=contract, tensors=tensors)
        made.write(shards)
        made.configure()
        (path / "tokenizer.json").write_text(
            '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}'
        )
        (path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
        return made

    return make


@pytest.fixture
def pack(make_checkpoint: Callable[..., Made], tmp_path: Path) -> Path:
    """A small sound pack whose files may be written to, as whoever tampers with them would see to."""
    path = Path(make_checkpoint().build(tmp_path / "packs").path)
    for file in path.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    return path


def seal_files(pack: Path, edit: Callable[[dict[str, Any]], object] | None = None) -> Path:
    manifest = json.loads((pack / "manifest.json").read_text())
    for record in manifest["files"]:
        data = (pack / record["path"]).read_bytes()
        record |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if edit:
        edit(manifest)
    return seal_text(pack, json.dumps(manifest).encode())


def seal_text(pack: Path, manifest: bytes) -> Path:
    (pack / "manifest.json").write_bytes(manifest)
    lines = []
    for path in sorted(path for path in pack.rglob("*") if path.is_file() and path.name != "LOCK"):
        data = path.read_bytes()
        name = path.relative_to(pack).as_posix()
        lines.append(f"{name}\t{len(data)}\t{hashlib.sha256(data).hexdigest()}\n")
    lock = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    (pack / "LOCK").write_text(lock + "\n")
    return pack.rename(pack.with_name(f"tiny-cpu-{lock[:8]}"))


@pytest.fixture
def reseal() -> Callable[..., Path]:
    """reseal(pack, edit=None) -> Path: what an attacker does after tampering.

    Every hash is made right again, after `edit` changed the manifest, and the pack gets its new name; only
    the checks of the fields are left. Written from the format's description, not with our own code.
    """
    return seal_files


@pytest.fixture
def relock() -> Callable[[Path, bytes], Path]:
    """relock(pack, manifest) -> Path: like `reseal`, with these very bytes for manifest.json."""
    return seal_text


@pytest.fixture
def contract_of() -> Callable[..., Contract]:
    return contract_for
