"""Train the demo model or its draft on the token files that lean.demo.tokens wrote.

    python -m lean.demo.train --model main  --tokens build/tokens --out lean/demo/checkpoint
    python -m lean.demo.train --model draft --tokens build/tokens --out lean/demo/draft

AdamW, warm-up then cosine, gradient clipping, dropout; bfloat16 autocast on CUDA, float32 on a CPU. The last
part of the run uses longer sequences, so that every position the config promises has been trained. The
weights kept are those with the lowest validation loss.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lean.demo.hf_files import save_checkpoint
from lean.demo.model import DRAFT, MAIN, Qwen3
from lean.demo.tokens import TokenArray, read_tokens

GEOMETRIES = {"main": MAIN, "draft": DRAFT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the result, apart from the data."""

    model: str = "main"
    seed: int = 0
    steps: int = 3000
    tokens_per_step: int = 32_768
    context: int = 512
    long_context: int = 2048
    long_share: float = 0.3  # of the steps, at the end
    learning_rate: float = 1.5e-3
    final_rate: float = 0.05  # of learning_rate
    warmup: int = 150
    weight_decay: float = 0.1
    dropout: float = 0.1
    clip: float = 1.0
    evaluate_every: int = 150

    def context_at(self, step: int) -> int:
        return self.long_context if step >= self.steps * (1 - self.long_share) else self.context

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then cosine down to final_rate."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (
            self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))
        )


def epoch(tokens: TokenArray, context: int, generator: np.random.Generator) -> Iterator[TokenArray]:
    """Windows of context + 1 tokens in random order, cut at a phase of this epoch's own."""
    phase = int(generator.integers(context))
    starts = np.arange(phase, len(tokens) - context - 1, context)
    for start in generator.permutation(starts):
        yield tokens[start : start + context + 1]


def batches(tokens: TokenArray, recipe: Recipe) -> Iterator[torch.Tensor]:
    """One batch [B, S + 1] a step."""
    generator = np.random.default_rng(recipe.seed)
    context = 0
    windows: Iterator[TokenArray] = iter(())
    for step in range(recipe.steps):
        if recipe.context_at(step) != context:
            context, windows = recipe.context_at(step), iter(())
        rows: list[TokenArray] = []
        while len(rows) < max(1, recipe.tokens_per_step // context):
            row = next(windows, None)
            if row is None:
                windows = epoch(tokens, context, generator)
            else:
                rows.append(row)
        yield torch.from_numpy(np.stack(rows).astype(np.int64))


def next_token_loss(model: Qwen3, batch: torch.Tensor) -> torch.Tensor:
    """Mean nats a token over a batch [B, S + 1]."""
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


@torch.inference_mode()
def mean_loss(model: Qwen3, tokens: TokenArray, device: torch.device, context: int = 1024) -> float:
    """Nats a token over all of `tokens` but the first, in windows of `context` that score each token once."""
    model.eval()
    total = 0.0
    for start in range(0, len(tokens) - 1, context):
        window = torch.from_numpy(tokens[start : start + context + 1].astype(np.int64)).to(device)[None]
        total += next_token_loss(model, window).item() * (window.shape[1] - 1)
    model.train()
    return total / (len(tokens) - 1)


def optimizer_for(model: Qwen3, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves the norms' gains alone."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))


def train(recipe: Recipe, tokens: Path, out: Path, device: torch.device) -> dict[str, Any]:
    """Train, keep the best weights in `out`, and return the run's record (also left beside the tokens)."""
    torch.manual_seed(recipe.seed)
    model = Qwen3(GEOMETRIES[recipe.model], recipe.dropout)
    model.init_weights(torch.Generator().manual_seed(recipe.seed))
    model.to(device)
    optimizer = optimizer_for(model, recipe)
    validation = read_tokens(tokens, "validation")
    curve: list[dict[str, float]] = []
    interval: list[torch.Tensor] = []
    best, seen, began = math.inf, 0, time.monotonic()
    for step, cpu_batch in enumerate(batches(read_tokens(tokens, "train"), recipe), start=1):
        batch = cpu_batch.to(device)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step - 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = next_token_loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        seen += batch[:, 1:].numel()
        interval.append(loss.detach())
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            point = {"step": step, "tokens": seen, "train": torch.stack(interval).mean().item()}
            point |= {"validation": mean_loss(model, validation, device), "rate": recipe.rate_at(step - 1)}
            interval.clear()
            curve.append({key: round(value, 5) for key, value in point.items()})
            print(json.dumps(curve[-1]), f"{time.monotonic() - began:.0f} s", flush=True)
            if point["validation"] < best:
                best = point["validation"]
                save_checkpoint(model, out)
    record = {
        "recipe": dataclasses.asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "best_validation_loss": round(best, 5),
        "tokens_seen": seen,
        "wall_seconds": round(time.monotonic() - began, 1),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "curve": curve,
    }
    (tokens / f"run-{recipe.model}.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=Path, required=True, help="folder that lean.demo.tokens wrote")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu"
    )
    for field in dataclasses.fields(Recipe):
        flag = "--" + field.name.replace("_", "-")
        choices = tuple(GEOMETRIES) if field.name == "model" else None
        parser.add_argument(
            flag, type=type(field.default), default=field.default, choices=choices, help="%(default)s"
        )
    arguments = vars(parser.parse_args())
    tokens, out, device = (arguments.pop(name) for name in ("tokens", "out", "device"))
    record = train(Recipe(**arguments), tokens, out, torch.device(device))
    print(f"best validation loss {record['best_validation_loss']} nats a token, {record['wall_seconds']} s")


if __name__ == "__main__":
    main()
