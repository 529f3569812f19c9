"""transformers' Qwen3 as the oracle of the model: random checkpoints, greedy streams and their logits.

    qwen3_oracle.py JOB.json

The job is a list, done in order in one process:

    {"make": DIR, "config": {...}}                        a random checkpoint in BF16, norms random too
    {"stream": DIR, "prompt": [...], "new": n, "out": F}  F (safetensors) has tokens [T], the prompt and then
                                                          n greedy ones, and logits [T, V] in FP32

Run by the oracles' own python: importing transformers beside our `kernels` package fails.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM


def make(folder: str, config: dict[str, Any]) -> None:
    torch.manual_seed(11)
    model = Qwen3ForCausalLM(Qwen3Config(**config))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
    model.bfloat16().save_pretrained(folder)


def stream(folder: str, prompt: list[int], new: int, out: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor([prompt])
    with torch.inference_mode():
        tokens = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            min_new_tokens=new,
            max_new_tokens=new,
            pad_token_id=0,
            eos_token_id=None,
        )
        logits = model(tokens).logits
    save_file({"tokens": tokens[0].clone(), "logits": logits[0].float().clone()}, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for task in json.loads(Path(sys.argv[1]).read_text()):
        if "make" in task:
            make(task["make"], task["config"])
        else:
            stream(task["stream"], task["prompt"], task["new"], task["out"])
