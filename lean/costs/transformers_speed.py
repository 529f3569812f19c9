"""Greedy generation speed of transformers on a checkpoint: one JSON document with every raw sample.

    python lean/costs/transformers_speed.py --checkpoint DIR --threads 1 --prompt 64 --new 256

A sample is one `generate` call, prefill included, of exactly `--new` tokens. `runner_speed.py` prints the
same of the torch runner on a pack; `lean.costs.decode` runs the two in turn.
"""

from __future__ import annotations

import argparse
import json
from time import perf_counter

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prompt", type=int, default=64, help="tokens; ids 0, 37, 74, ... of the vocabulary")
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(
        options.checkpoint, dtype=getattr(torch, options.dtype)
    ).eval()
    prompt = torch.tensor([[37 * i % model.config.vocab_size for i in range(options.prompt)]])
    seconds = []
    for _ in range(1 + options.repeats):
        started = perf_counter()
        with torch.inference_mode():
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                min_new_tokens=options.new,
                max_new_tokens=options.new,
                pad_token_id=0,
            )
        seconds.append(perf_counter() - started)
        assert out.shape[1] == options.prompt + options.new
    samples = [options.new / second for second in seconds[1:]]  # the first call warms up
    tokens = out[0, options.prompt :].tolist()
    record = vars(options) | {"engine": "transformers", "tokens_per_second": samples, "tokens": tokens}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
