"""Measure trained checkpoints on the held-out split and write training.json, their record.

    python -m lean.demo.evaluate --tokens build/tokens --corpus build/corpus

The bar: held-out loss below a Kneser-Ney trigram model's, and no run of 32 generated tokens that stands in
the training text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from lean.demo import CHECKPOINT_DIR, DEMO_DIR, DRAFT_DIR
from lean.demo.copying import RUN, CopyCheck, longest_copied_run, longest_repeated_run
from lean.demo.hf_files import load_checkpoint
from lean.demo.model import Qwen3, generate
from lean.demo.ngram import KneserNeyTrigram
from lean.demo.tokens import TokenArray, read_tokens
from lean.demo.train import mean_loss

PROMPTS = 64
PROMPT_TOKENS = 32
NEW_TOKENS = 256
C_PROLOGUE = "#include <stdio.h>\n"  # example programs open alike, whatever repeats the corpus strikes
POSITION_BUCKETS = ((0, 128), (128, 512), (512, 1024), (1024, 1536), (1536, 2048))


@torch.inference_mode()
def loss_by_position(model: Qwen3, tokens: TokenArray, device: torch.device) -> dict[str, float]:
    """Mean held-out loss of the tokens predicted at each range of positions, over windows of 2048."""
    length = model.geometry.max_positions
    losses = []
    for start in range(0, len(tokens) - length - 1, length):
        window = torch.from_numpy(tokens[start : start + length + 1].astype(np.int64)).to(device)[None]
        logits = model(window[:, :-1])[0].float()  # [S, V]
        losses.append(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none"))
    mean = torch.stack(losses).mean(0)
    return {f"{low}-{high}": round(mean[low:high].mean().item(), 4) for low, high in POSITION_BUCKETS}


def passages(tokens: TokenArray) -> TokenArray:
    """PROMPTS evenly spaced passages, [PROMPTS, PROMPT_TOKENS]."""
    starts = np.linspace(0, len(tokens) - PROMPT_TOKENS, PROMPTS).astype(int)
    return np.stack([tokens[start : start + PROMPT_TOKENS] for start in starts])


def sample(model: Qwen3, prompts: TokenArray, temperature: float, device: torch.device) -> list[TokenArray]:
    """One continuation of each prompt, [NEW_TOKENS]."""
    generator = torch.Generator(device).manual_seed(0)
    batch = torch.from_numpy(prompts.astype(np.int64)).to(device)
    generated = generate(model, batch, NEW_TOKENS, temperature, generator)
    return list(generated.cpu().numpy().astype(np.uint16))


def copy_report(
    model: Qwen3, tokenizer: Tokenizer, train: TokenArray, heldout: TokenArray, device: torch.device
) -> dict[str, Any]:
    """Copied windows and the longest copied run.

    The bar is set on held-out prompts, greedy and at temperature 0.8. The other prompts go out of their way
    to make the model copy: passages of the training text itself, and the opening line of a C program.
    """
    check = CopyCheck(train)
    report: dict[str, Any] = {"run": RUN, "prompts": PROMPTS, "new_tokens": NEW_TOKENS}
    prologue = np.tile(np.array(tokenizer.encode(C_PROLOGUE).ids, dtype=np.uint16), (PROMPTS, 1))
    for name, prompts, temperature in (
        ("greedy", passages(heldout), 0.0),
        ("temperature_0.8", passages(heldout), 0.8),
        ("training_prompts_greedy", passages(train), 0.0),
        ("training_prompts_temperature_0.8", passages(train), 0.8),
        ("c_prologue_temperature_0.8", prologue, 0.8),
    ):
        texts = sample(model, prompts, temperature, device)
        copied = [len(check.copied_windows(text)) for text in texts]
        report[name] = {
            "samples_with_a_copy": sum(count > 0 for count in copied),
            "copied_windows": sum(copied),
            "longest_copied_run": longest_copied_run(train, texts),
        }
    return report


def measure(folder: Path, train: TokenArray, heldout: TokenArray, device: torch.device) -> dict[str, Any]:
    """All figures of one checkpoint, and the hash of the weights they belong to."""
    model = load_checkpoint(folder).to(device)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    weights = (folder / "model.safetensors").read_bytes()
    return {
        "sha256": hashlib.sha256(weights).hexdigest(),
        "bytes": len(weights),
        "heldout_loss": round(mean_loss(model, heldout, device), 4),
        "heldout_loss_by_position": loss_by_position(model.eval(), heldout, device),
        "copying": copy_report(model, tokenizer, train, heldout, device),
    }


def examples(
    model: Qwen3, tokenizer: Tokenizer, prompts: tuple[str, ...], new_tokens: int = 80
) -> list[dict[str, str]]:
    """Greedy and sampled continuations of short prompts, for a person to read."""
    shown = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        for temperature in (0.0, 0.8):
            new = generate(model, ids, new_tokens, temperature, torch.Generator().manual_seed(0))
            text = tokenizer.decode(new[0].tolist(), skip_special_tokens=False)
            shown.append({"prompt": prompt, "temperature": str(temperature), "continuation": text})
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokens", type=Path, required=True, help="folder of lean.demo.tokens, with the run records"
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder with corpus.json")
    parser.add_argument("--main", type=Path, default=CHECKPOINT_DIR, help="main checkpoint")
    parser.add_argument("--draft", type=Path, default=DRAFT_DIR, help="draft checkpoint")
    parser.add_argument("--out", type=Path, default=DEMO_DIR, help="folder for training.json")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu"
    )
    arguments = parser.parse_args()

    device = torch.device(arguments.device)
    train, heldout = read_tokens(arguments.tokens, "train"), read_tokens(arguments.tokens, "heldout")
    trigram = KneserNeyTrigram(train, vocab=4096).loss(heldout)
    splits = json.loads((arguments.corpus / "corpus.json").read_text())["splits"]
    tokens = json.loads((arguments.tokens / "tokens.json").read_text())
    record: dict[str, Any] = {
        "schema": "demo-training/v1",
        "corpus": {split: {"text_sha256": splits[split]["sha256"]} | tokens[split] for split in splits},
        "longest_repeated_training_run": longest_repeated_run(train),
        "trigram_heldout_loss": round(trigram, 4),
        "models": {},
    }
    for name, folder in (("main", arguments.main), ("draft", arguments.draft)):
        run = json.loads((arguments.tokens / f"run-{name}.json").read_text())
        record["models"][name] = measure(folder, train, heldout, device) | {"run": run}
        print(name, {key: value for key, value in record["models"][name].items() if key != "run"}, flush=True)
    main_model = load_checkpoint(arguments.main)
    tokenizer = Tokenizer.from_file(str(arguments.main / "tokenizer.json"))
    record["examples"] = examples(main_model, tokenizer, ("NAME\n\nsort -", "The function returns"))
    (arguments.out / "training.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
