"""What every runner refuses, in the same words: wrong slots, buckets, tokens, and positions past the end."""

from __future__ import annotations

from collections.abc import Sequence

from lean.errors import CapacityError, UsageError
from lean.leanserve.runner import Piece


def check_slot(slot: int, slots: int) -> None:
    """Raise `UsageError` unless there is such a slot."""
    if not 0 <= slot < slots:
        raise UsageError(f"slot: expected 0 to {slots - 1}, got {slot}")


def check_bucket(bucket: int, buckets: Sequence[int]) -> None:
    """Raise `UsageError` unless the runner decodes this many rows."""
    if bucket not in buckets:
        raise UsageError(f"bucket: expected one of {', '.join(map(str, buckets))}, got {bucket}")


def check_pieces(pieces: Sequence[Piece], slots: int, vocab: int) -> None:
    """Raise `UsageError` for a wrong slot or one named twice, for no tokens, and for one that is none."""
    named = set()
    for piece in pieces:
        check_slot(piece.slot, slots)
        if piece.slot in named:
            raise UsageError(f"slot {piece.slot}: expected one piece of its prompt, got another")
        named.add(piece.slot)
        check_tokens("prompt", piece.tokens, vocab)
        if not piece.tokens:
            raise UsageError("prompt: expected at least one token")
        if piece.sampling is not None:
            check_tokens("suppress", piece.sampling.suppress, vocab)


def check_tokens(what: str, tokens: Sequence[int], vocab: int) -> None:
    """Raise `UsageError` naming the first token outside the vocabulary."""
    wrong = next((token for token in tokens if not 0 <= token < vocab), None)
    if wrong is not None:
        raise UsageError(f"{what}: token {wrong} is outside the vocabulary of {vocab}")


def check_room(slot: int, held: int, count: int, limit: int) -> None:
    """Raise `CapacityError` when `count` more positions do not fit the slot."""
    if held + count > limit:
        raise CapacityError(
            f"slot {slot}: {held} positions held, {count} more asked for, but a slot has {limit}; "
            "shorten the prompt, ask for fewer tokens, or build the pack for a longer bucket"
        )


def check_rewind(slot: int, length: int, written: int) -> None:
    """Raise `UsageError` when the slot no longer holds `length` positions."""
    if not 0 <= length <= written:
        raise UsageError(f"slot {slot}: cannot restore {length} positions, it holds {written}")
