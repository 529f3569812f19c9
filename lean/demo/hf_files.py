"""A checkpoint in Hugging Face file layout: config.json, generation_config.json, model.safetensors (BF16)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lean.demo.model import Geometry, Qwen3
from lean.demo.tokenizer import SPECIAL_TOKENS


def hf_config(geometry: Geometry) -> dict[str, Any]:
    """config.json as Qwen3 checkpoints carry it."""
    end_of_text = geometry.vocab - len(SPECIAL_TOKENS)
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "head_dim": geometry.head_dim,
        "hidden_act": "silu",
        "hidden_size": geometry.hidden,
        "initializer_range": 0.02,
        "intermediate_size": geometry.intermediate,
        "max_position_embeddings": geometry.max_positions,
        "max_window_layers": geometry.layers,
        "model_type": "qwen3",
        "num_attention_heads": geometry.heads,
        "num_hidden_layers": geometry.layers,
        "num_key_value_heads": geometry.kv_heads,
        "rms_norm_eps": geometry.eps,
        "rope_scaling": None,
        "rope_theta": geometry.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": geometry.vocab,
    }


def geometry_of(config: dict[str, Any]) -> Geometry:
    """The inverse of `hf_config`."""
    return Geometry(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        intermediate=config["intermediate_size"],
        head_dim=config["head_dim"],
        vocab=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        eps=config["rms_norm_eps"],
        rope_theta=config["rope_theta"],
    )


def save_checkpoint(model: Qwen3, folder: Path) -> None:
    """Write weights and configs; the tokenizer's files are `tokenizer.save_tokenizer`'s."""
    folder.mkdir(parents=True, exist_ok=True)
    config = hf_config(model.geometry)
    ends = {
        "bos_token_id": config["bos_token_id"],
        "do_sample": False,
        "eos_token_id": config["eos_token_id"],
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", ends | {"max_new_tokens": model.geometry.max_positions})
    tensors = {
        name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors creates it readable by its owner only


def load_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> Qwen3:
    """The model in `folder`, in evaluation mode."""
    model = Qwen3(geometry_of(json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.to(dtype).eval()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
