"""Which prompt programs carry pieces of prompts, and where in them each piece stands.

A program's rows belong to pieces in groups of `PROMPT_GROUP`; what a group computes does not depend on the
program it travels in, so only time decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kernels.qwen3 import PROMPT_GROUP

# A program's weights take as long to read as so many rows take to compute. Qwen3-4B on an H100: 64 rows in
# 3.8 ms, 256 in 6.1, 1024 in 20.5; so 512 rows go in two programs of 256 and not in one of 1024.
WEIGHTS_IN_ROWS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Up to `PROMPT_GROUP` tokens of one piece from `start` on; `ends` with the last of the piece."""

    piece: int
    start: int
    count: int
    ends: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptProgram:
    """One run of the program of `rows` rows; group i stands at row i · `PROMPT_GROUP`."""

    rows: int
    groups: tuple[Group, ...]


def pack_pieces(lengths: Sequence[int], sizes: Sequence[int]) -> Iterator[PromptProgram]:
    """Programs of some of `sizes` rows that carry pieces of these lengths, in order and in little time."""
    groups = [
        Group(
            piece=piece,
            start=start,
            count=min(length - start, PROMPT_GROUP),
            ends=start + PROMPT_GROUP >= length,
        )
        for piece, length in enumerate(lengths)
        for start in range(0, length, PROMPT_GROUP)
    ]
    first = 0
    for rows in program_sizes(len(groups) * PROMPT_GROUP, sizes):
        following = first + rows // PROMPT_GROUP
        yield PromptProgram(rows=rows, groups=tuple(groups[first:following]))
        first = following


def program_sizes(rows: int, sizes: Sequence[int]) -> list[int]:
    """Programs that hold `rows` rows together, largest first: all full but the last one or two."""
    whole, rest = divmod(rows, max(sizes))
    return [max(sizes)] * whole + (_fastest(rest, sizes) if rest else [])


def _fastest(rows: int, sizes: Sequence[int]) -> list[int]:
    """The smallest program that holds the rows, or the next smaller one and what carries the others."""
    one = min(size for size in sizes if size >= rows)
    smaller = [size for size in sizes if size < rows]
    if not smaller:
        return [one]
    several = [max(smaller), *_fastest(rows - max(smaller), sizes)]
    return [one] if one + WEIGHTS_IN_ROWS <= sum(size + WEIGHTS_IN_ROWS for size in several) else several
