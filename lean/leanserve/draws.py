"""The random numbers of sampled streams: any draw of any stream, found without the ones before it."""

from __future__ import annotations

_ROUNDS = 10
_WORD = (1 << 32) - 1


def uniform(seed: int, draw: int) -> float:
    """Draw number `draw` of stream `seed`, in [0, 1) with 53 bits.

    Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): key = seed, counter =
    draw, so any draw is found without the ones before it, on a GPU too.
    """
    counter, key = (draw & _WORD, (draw >> 32) & _WORD, 0, 0), (seed & _WORD, (seed >> 32) & _WORD)
    high, low, _, _ = philox(counter, key)
    return (((high << 32) | low) >> 11) / (1 << 53)


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four 32-bit words of Philox 4x32-10."""
    a, b, c, d = counter
    low, high = key
    for _ in range(_ROUNDS):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (second >> 32) ^ b ^ low, second & _WORD, (first >> 32) ^ d ^ high, first & _WORD
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return a, b, c, d
