"""`python -m lean.baseline.gguf_file MODEL OUT`: a Qwen3 checkpoint in the file that llama.cpp reads.

It runs in llama.cpp's environment, which holds the `gguf` package; of ours it needs the standard library
alone. Matrices keep their bf16 bits; norms become f32, as llama.cpp wants them. Source of the names: gguf's
`constants.py`, architecture qwen3, and llama.cpp's `conversion/qwen.py`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from lean.cli import run_program
from lean.errors import Interrupted, PackError, PreflightError, UsageError
from lean.files.staging import check_space

_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ALIGNMENT = 256  # bytes: a tensor's padding, name and place in the header
_PER_WORD = 24  # its length, its kind, and a name for one that only pads
_HEADER = 1 << 16
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(model: Path, out: Path) -> dict[str, Any]:
    """Write `out` whole or not at all: whatever ends this, SIGTERM too, nothing is left beside it.

    Errors: `PackError` naming what the checkpoint lacks, `PreflightError` when the disk has not the room.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise PreflightError(
            f"the Python package {error.name} is missing; this runs in llama.cpp's environment"
        ) from None
    config = _json(model / "config.json")
    if config.get("model_type") != "qwen3":
        raise PackError(
            f"{model / 'config.json'}: model_type: expected 'qwen3', got {config.get('model_type')!r}"
        )
    for left in out.parent.glob(f".{out.name}.*.partial"):
        left.unlink()  # of one that was killed
    check_space(out.parent, file_bytes(model, config), "llama.cpp's file of the weights")
    beside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        writer = gguf.GGUFWriter(beside, "qwen3")
        _add_geometry(writer, gguf, model.name, config)
        _add_tokenizer(writer, gguf, model, config["vocab_size"])
        count = _add_tensors(writer, gguf, model, config)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(beside, out)
    except OSError as error:  # NumPy's, of a disk that is full, has no number
        raise PreflightError(f"{out}: cannot be written: {error}; make room there") from None
    finally:
        beside.unlink(missing_ok=True)
    return {"file": str(out), "tensors": count, "bytes": out.stat().st_size}


def file_bytes(model: Path, config: Mapping[str, Any]) -> int:
    """At least what the file takes: every tensor as it is written, and room for the vocabulary."""
    from lean.leanpack.checkpoint import Checkpoint

    with Checkpoint(model) as checkpoint:
        slots = [slot for name, (_, slot) in checkpoint.tensors.items() if not _is_tied(name, config)]
    tensors = sum(slot.size * (2 if len(slot.shape) == 1 else 1) + _ALIGNMENT for slot in slots)
    words = (model / "tokenizer.json").stat().st_size if (model / "tokenizer.json").exists() else 0
    return tensors + 2 * words + _PER_WORD * int(config["vocab_size"]) + _HEADER


def _is_tied(name: str, config: Mapping[str, Any]) -> bool:
    """Whether it is left out: llama.cpp takes the embedding then."""
    return name == "lm_head.weight" and bool(config.get("tie_word_embeddings"))


def _add_geometry(writer: Any, gguf: Any, name: str, config: Mapping[str, Any]) -> None:
    """The model's sizes, under llama.cpp's names for them."""
    writer.add_name(name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(_theta(config))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def _add_tensors(writer: Any, gguf: Any, model: Path, config: Mapping[str, Any]) -> int:
    """Every tensor, a tied head left out; how many. Errors: `PackError` for one that is not bf16."""
    import numpy as np

    count = 0
    for name, dtype, shape, data in _tensors(model):
        if _is_tied(name, config):
            continue
        if dtype != "BF16":
            raise PackError(f"{model}: {name}: expected BF16, got {dtype}")
        bits = np.frombuffer(data, dtype=np.uint16).reshape(shape)
        if len(shape) == 1:
            writer.add_tensor(_name(name), (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(_name(name), bits.view(np.uint8), raw_dtype=kind)
        count += 1
    return count


def _add_tokenizer(writer: Any, gguf: Any, model: Path, vocabulary: int) -> None:
    """A byte-level BPE with Qwen2's way of cutting text, from tokenizer.json."""
    file = model / "tokenizer.json"
    document = _json(file)
    words: list[str | None] = [None] * vocabulary
    for word, index in document["model"]["vocab"].items():
        words[index] = word
    kinds = [gguf.TokenType.NORMAL] * vocabulary
    for added in document.get("added_tokens", ()):
        words[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    for index, word in enumerate(words):
        if word is None:  # rows that pad the embedding
            words[index], kinds[index] = f"[PAD{index}]", gguf.TokenType.UNUSED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]]
    config = _json(model / "config.json")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    for add, name in ((writer.add_bos_token_id, "bos_token_id"), (writer.add_eos_token_id, "eos_token_id")):
        if isinstance(config.get(name), int):
            add(config[name])


def _tensors(model: Path) -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
    """Name, dtype, shape and bytes of every tensor, one at a time."""
    from lean.leanpack.checkpoint import Checkpoint

    with Checkpoint(model) as checkpoint:
        for name, (_, slot) in checkpoint.tensors.items():
            yield name, slot.dtype, slot.shape, b"".join(checkpoint.stream(name))


def _name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.weight"
    head, _, rest = stem.removeprefix("model.layers.").partition(".")
    if not head.isdecimal() or rest not in _LAYER:
        raise PackError(f"{name}: no tensor of a Qwen3 checkpoint")
    return f"blk.{head}.{_LAYER[rest]}.weight"


def _theta(config: Mapping[str, Any]) -> float:
    """Newer configurations keep it in `rope_parameters`."""
    return float((config.get("rope_parameters") or config)["rope_theta"])


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackError(f"{file}: {error}; fetch the model again") from None


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted("stopped while writing llama.cpp's file of the weights; nothing of it is left")


def main(argv: list[str]) -> dict[str, Any]:
    """Write the file; what `run_program` prints."""
    if len(argv) != 2:
        raise UsageError("usage: python -m lean.baseline.gguf_file MODEL OUT")
    signal.signal(signal.SIGTERM, _interrupt)
    return write_gguf(Path(argv[0]), Path(argv[1]))


if __name__ == "__main__":
    sys.exit(run_program(main))
