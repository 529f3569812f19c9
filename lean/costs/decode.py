"""Greedy CPU decode of the torch runner beside transformers' `generate`, everything else the same.

The two run in turn, each in a process of its own; transformers in an environment of its own, where our
`kernels` cannot be seen (transformers mistakes it for another package).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lean.errors import GateError, PreflightError

SPEED = str(Path(__file__).resolve().with_name("speed.py"))
PROCESS_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeCost:
    """Generated tokens/s of every repeat, in order. Both sides chose the same tokens, or this is not made."""

    threads: int
    dtype: str
    prompt: int
    new: int
    ours: tuple[float, ...]
    peer: tuple[float, ...]
    ratio_of_medians: float
    ratio_to_peer_best: float


def decode_cost(
    pack: Path, checkpoint: Path, peer: Path, *, rounds: int, threads: int, dtype: str, prompt: int, new: int
) -> DecodeCost:
    """Run both sides `rounds` times.

    Errors: `PreflightError` when a side cannot run, `GateError` when they differ.
    """
    same = ["--threads", str(threads), "--dtype", dtype, "--prompt", str(prompt), "--new", str(new)]
    ours_argv = [sys.executable, SPEED, "runner", str(pack), *same]
    peer_argv = [str(peer), SPEED, "transformers", str(checkpoint), *same]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        own, other = _measure(ours_argv, os.environ), _measure(peer_argv, alone)
        if own["tokens"] != other["tokens"]:
            raise GateError("the runner and transformers chose different tokens; their speeds do not compare")
        ours += own["tokens_per_second"]
        theirs += other["tokens_per_second"]
    return DecodeCost(
        threads=threads,
        dtype=dtype,
        prompt=prompt,
        new=new,
        ours=tuple(ours),
        peer=tuple(theirs),
        ratio_of_medians=median(ours) / median(theirs),
        ratio_to_peer_best=median(ours) / max(theirs),
    )


def _measure(argv: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """The JSON document that one side prints last."""
    done = subprocess.run(argv, env=dict(environment), capture_output=True, text=True, timeout=PROCESS_S)
    if done.returncode != 0:
        raise PreflightError(f"{argv[0]} speed.py {argv[2]} failed: {done.stderr.strip()[-300:]}")
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document
