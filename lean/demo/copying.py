"""Did the model memorise? Every 32-token window of generated text is looked up in the training text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RUN = 32  # tokens
Tokens = NDArray[np.integer]
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def run_hashes(tokens: Tokens, run: int) -> NDArray[np.uint64]:
    """A 64-bit polynomial hash of each window of `run` tokens, over a fixed random number for each token."""
    table = np.random.default_rng(2011).integers(0, 2**64, size=65_536, dtype=np.uint64)
    mixed = table[tokens]
    hashes = np.zeros(max(0, len(tokens) - run + 1), dtype=np.uint64)
    for offset in range(run):  # wraps modulo 2**64 on purpose
        hashes = hashes * MULTIPLIER + mixed[offset : offset + len(hashes)]
    return hashes


class CopyCheck:
    """The windows of one length of the training text."""

    def __init__(self, train: Tokens, run: int = RUN) -> None:
        self.run = run
        self._known = np.sort(run_hashes(train, run))

    def copied_windows(self, text: Tokens) -> list[int]:
        """Starts of the windows of `text` [N] that stand token for token in the training text."""
        wanted = run_hashes(text, self.run)
        if not len(self._known) or not len(wanted):
            return []
        nearest = np.minimum(np.searchsorted(self._known, wanted), len(self._known) - 1)
        return [int(start) for start in np.flatnonzero(self._known[nearest] == wanted)]


def longest_copied_run(train: Tokens, texts: Sequence[Tokens]) -> int:
    """The longest run, in tokens, that any of `texts` shares with `train`: how near the limit it came."""
    low, high = 0, max(len(text) for text in texts)
    while low < high:  # a shared run of n tokens holds shared runs of every shorter length
        middle = (low + high + 1) // 2
        check = CopyCheck(train, middle)
        found = any(check.copied_windows(text) for text in texts)
        low, high = (middle, high) if found else (low, middle - 1)
    return low


def longest_repeated_run(tokens: Tokens) -> int:
    """The longest run, in tokens, that stands twice in `tokens` [N]."""

    def repeats(run: int) -> bool:
        hashes = run_hashes(tokens, run)
        return len(np.unique(hashes)) < len(hashes)

    high = 1
    while repeats(high):  # hashing costs N * run, so the bound grows from below
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if repeats(middle) else (low, middle)
    return low
