"""Both sides of the CPU decode comparison in turn: same checkpoint, prompt, threads and type.

    PYTHONPATH=. python tests/oracle/interleaved_speed.py --checkpoint DIR --pack DIR --oracle PYTHON

One JSON document: every raw sample, medians, and the ratio of our median to the peer's median and best.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent


def measure(argv: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """The JSON document one side prints."""
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=600, check=True)
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--pack", required=True)
    parser.add_argument(
        "--oracle", default=os.environ.get("LEAN_ORACLE_PYTHON"), help="python with transformers"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompt", default="64")
    parser.add_argument("--new", default="256")
    options = parser.parse_args()

    same = [
        "--threads",
        options.threads,
        "--dtype",
        options.dtype,
        "--prompt",
        options.prompt,
        "--new",
        options.new,
    ]
    theirs = [options.oracle, str(HERE / "generate_speed.py"), "--checkpoint", options.checkpoint, *same]
    ours = [sys.executable, str(HERE / "runner_speed.py"), "--pack", options.pack, *same]
    bare = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    }  # they must not see `kernels`
    samples: dict[str, list[float]] = {"transformers": [], "leanserve": []}
    agree = True
    for _ in range(options.rounds):
        peer, own = measure(theirs, bare), measure(ours, dict(os.environ))
        samples["transformers"] += peer["tokens_per_second"]
        samples["leanserve"] += own["tokens_per_second"]
        agree = agree and peer["tokens"] == own["tokens"]
    ours_median = median(samples["leanserve"])
    record = vars(options) | {
        "samples": samples,
        "medians": {name: median(values) for name, values in samples.items()},
        "ratio_of_medians": ours_median / median(samples["transformers"]),
        "ratio_to_peer_best": ours_median / max(samples["transformers"]),
        "same_tokens": agree,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
