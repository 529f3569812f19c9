"""Greedy generation speed on a CPU: one JSON document with every raw sample.

    python lean/costs/speed.py runner PACK                  the torch runner
    python lean/costs/speed.py transformers CHECKPOINT      transformers' `generate`, with nothing of ours

A sample is one generation of exactly `--new` tokens, prefill included. `lean.costs.decode` runs the two in
turn, each in its own Python.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from time import perf_counter

Generate = Callable[[list[int], int], list[int]]


def open_runner(pack: str, threads: int, dtype: str) -> tuple[Generate, int]:
    """What generates, one decode step a call as the service does, and the size of the vocabulary."""
    from lean.leanpack import open_pack
    from lean.leanserve.runner import Piece, Sampling
    from lean.leanserve.torch_runner import TorchRunner

    runner = TorchRunner(open_pack(pack), slots=1, threads=threads, dtype=dtype)  # type: ignore[arg-type]

    def generate(prompt: list[int], new: int) -> list[int]:
        (first,) = runner.prefill([Piece(slot=0, tokens=prompt, sampling=Sampling())])
        assert first is not None
        tokens = [first.token, *(runner.decode(1, 1)[0][0].token for _ in range(new - 1))]
        runner.release(0)
        return tokens

    return generate, runner.facts.vocab


def open_transformers(checkpoint: str, threads: int, dtype: str) -> tuple[Generate, int]:
    """What generates, and the size of the vocabulary."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()

    def generate(prompt: list[int], new: int) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=new,
                max_new_tokens=new,
                pad_token_id=0,
            )
        return [int(token) for token in out[0, len(prompt) :]]

    return generate, int(model.config.vocab_size)


ENGINES = {"runner": open_runner, "transformers": open_transformers}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("weights", help="a pack, or a checkpoint for transformers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prompt", type=int, default=64, help="tokens; ids 0, 37, 74, ... of the vocabulary")
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    generate, vocab = ENGINES[options.engine](options.weights, options.threads, options.dtype)
    prompt = [37 * i % vocab for i in range(options.prompt)]
    seconds = []
    for _ in range(1 + options.repeats):
        started = perf_counter()
        tokens = generate(prompt, options.new)
        seconds.append(perf_counter() - started)
        assert len(tokens) == options.new
    samples = [options.new / second for second in seconds[1:]]  # the first call warms up
    print(json.dumps(vars(options) | {"tokens_per_second": samples, "tokens": tokens}))


if __name__ == "__main__":
    main()
