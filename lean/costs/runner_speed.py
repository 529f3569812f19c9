"""Greedy generation speed of the torch runner on a pack: what `transformers_speed.py` prints of transformers.

python lean/costs/runner_speed.py --pack DIR --threads 1 --prompt 64 --new 256
"""

from __future__ import annotations

import argparse
import json
from time import perf_counter

from lean.leanpack import open_pack
from lean.leanserve.runner import Sampling
from lean.leanserve.torch_runner import TorchRunner


def generate(runner: TorchRunner, prompt: list[int], new: int) -> list[int]:
    """Greedy tokens, one decode step a call, as the service does."""
    first = runner.prefill(0, prompt, Sampling())
    assert first is not None
    tokens = [first.token, *(runner.decode(1, 1)[0][0].token for _ in range(new - 1))]
    runner.release(0)
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pack", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prompt", type=int, default=64, help="tokens; ids 0, 37, 74, ... of the vocabulary")
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    pack = open_pack(options.pack)
    runner = TorchRunner(pack, slots=1, threads=options.threads, dtype=options.dtype)
    prompt = [37 * i % runner.facts.vocab for i in range(options.prompt)]
    seconds = []
    for _ in range(1 + options.repeats):
        started = perf_counter()
        tokens = generate(runner, prompt, options.new)
        seconds.append(perf_counter() - started)
    samples = [options.new / second for second in seconds[1:]]  # the first call warms up
    record = vars(options) | {"engine": "leanserve", "tokens_per_second": samples, "tokens": tokens}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
