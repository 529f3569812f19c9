"""One piece of one prompt, for tests that want no others beside it."""

from __future__ import annotations

from collections.abc import Sequence

from lean.leanserve.runner import Choice, Piece, Runner, Sampling


def prefill_one(
    runner: Runner, slot: int, tokens: Sequence[int], sampling: Sampling | None = None
) -> Choice | None:
    """Bring a piece in alone; the first token, if it came with `sampling`."""
    (choice,) = runner.prefill([Piece(slot=slot, tokens=tokens, sampling=sampling)])
    return choice
