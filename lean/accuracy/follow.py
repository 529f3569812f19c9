"""A runner led along given tokens: what it would have said at each, by the `Runner` protocol alone.

The prompt goes in by prefill; each further token by moving the cursor to it and decoding one step, so that
what is judged are the decode kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lean.leanserve.runner import Choice, Piece, Runner, Sampling

SLOT = 0
BUCKET = 1
Row = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """At each of T places along `tokens` [T]: what was chosen [T], and every log probability [T, V]."""

    tokens: tuple[int, ...]
    chosen: tuple[int, ...]
    logprobs: NDArray[np.float32]


def greedy(runner: Runner, prompt: Sequence[int], count: int) -> Answers:
    """The runner's own `count` tokens behind a prompt."""
    return _walk(runner, prompt, count, lambda place, choice: choice.token)


def forced(runner: Runner, prompt: Sequence[int], tokens: Sequence[int]) -> Answers:
    """What the runner says behind a prompt when the text goes on with `tokens`."""
    return _walk(runner, prompt, len(tokens), lambda place, choice: tokens[place])


def mean_loss(runner: Runner, tokens: Sequence[int], window: int) -> float:
    """Nats a token of a text, in windows of `window` tokens: each token but a window's first is predicted."""
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, window):
        first, *rest = tokens[start : start + window + 1]
        said = forced(runner, [first], rest)
        total -= float(said.logprobs[np.arange(len(rest)), rest].astype(np.float64).sum())
        count += len(rest)
    return total / count


def _walk(
    runner: Runner, prompt: Sequence[int], count: int, following: Callable[[int, Choice], int]
) -> Answers:
    vocab = runner.facts.vocab
    sampling = Sampling(top_logprobs=vocab, max_tokens=1)  # it need not work ahead: we may lead it elsewhere
    (choice,) = runner.prefill([Piece(slot=SLOT, tokens=prompt, sampling=sampling)])
    tokens: list[int] = []
    chosen: list[int] = []
    logprobs = np.empty((count, vocab), np.float32)
    for place in range(count):
        if place:
            cursor = replace(runner.snapshot(SLOT), last_token=tokens[-1])
            runner.restore(SLOT, cursor)
            choice = runner.decode(BUCKET, 1)[0][SLOT]
        assert choice is not None
        ids, values = zip(*choice.top, strict=True)
        logprobs[place, list(ids)] = values
        tokens.append(following(place, choice))
        chosen.append(choice.token)
    runner.release(SLOT)
    return Answers(tokens=tuple(tokens), chosen=tuple(chosen), logprobs=logprobs)
