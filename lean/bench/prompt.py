"""Prompts of an exact number of tokens, a different one for every request, made from a seed.

A text is repeated, cut to exactly N tokens, turned back into text and tokenised again; only a text that gives
the very same ids counts. So the same prompt can go out as ids or as text.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from lean.bench.sample import Phase, PromptRecord
from lean.contracts import BenchProfile
from lean.errors import PackError, PreflightError

_SENTENCES = (
    "The harbour wakes before the town does, and the first boats leave while the lamps are still lit.",
    "A careful engineer measures twice, writes both numbers down, and explains the difference.",
    "Rain fell on the orchard all afternoon, so the ladders stayed in the shed until evening.",
    "When the train reached the border, every passenger already knew the name of the conductor.",
    "Copper carries the signal, glass carries the light, and patience carries the project.",
    "She kept the map folded in her coat, although she had known the road since childhood.",
    "In winter the lake freezes from the edges inward, and the children wait for the middle.",
    "The library lends tools as well as books, and the drill is always out on Saturdays.",
    "Two clocks in the same room will agree only as long as nobody asks them the time.",
    "Every valley has a wind of its own, and the millers used to know them all by name.",
    "He repaired the radio with a spoon, a length of wire, and a great deal of silence.",
    "Bread, salt, and a warm stove were reason enough to stay another night.",
)
_ATTEMPTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt as ids and as the text that tokenises to exactly them."""

    ids: tuple[int, ...]
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the ids."""
        return ids_sha256(self.ids)

    def record(self, phase: Phase, stream: int, turn: int) -> PromptRecord:
        return PromptRecord(
            phase=phase,
            stream=stream,
            round=turn,
            tokens=len(self.ids),
            ids_sha256=self.sha256,
            text=self.text,
        )


def ids_sha256(ids: tuple[int, ...]) -> str:
    """Hash of token ids written as comma-joined decimal numbers."""
    return hashlib.sha256(",".join(map(str, ids)).encode("ascii")).hexdigest()


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a pack. Errors: `PackError` when `tokenizer.json` is missing or malformed."""
    file = folder / "tokenizer.json"
    try:
        return Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers package raises bare Exception for a malformed file
        raise PackError(f"{file}: no usable tokenizer: {error}; build the pack again") from None


def exact_prompt(tokenizer: Tokenizer, tokens: int, seed: str) -> Prompt:
    """A prompt of exactly `tokens` ids, the same for the same seed.

    Errors: `PreflightError` when no cut of the text survives being tokenised again.
    """
    rng = random.Random(seed)
    for _ in range(_ATTEMPTS):
        source = f"{rng.randrange(1000, 10_000)}. {' '.join(rng.sample(_SENTENCES, len(_SENTENCES)))}"
        ids = _encode(tokenizer, source)
        repeats = -(-tokens // max(len(ids), 1))
        ids = _encode(tokenizer, "\n".join([source] * repeats))[:tokens]
        text = tokenizer.decode(list(ids), skip_special_tokens=False)
        if len(ids) == tokens and _encode(tokenizer, text) == ids:
            return Prompt(ids=ids, text=text)
    raise PreflightError(
        f"no prompt of exactly {tokens} tokens survives tokenising again after {_ATTEMPTS} tries; "
        "the tokenizer does not round-trip plain English text"
    )


def profile_prompts(tokenizer: Tokenizer, profile: BenchProfile) -> dict[tuple[Phase, int, int], Prompt]:
    """Every prompt of a run, keyed by (phase, stream, round), all different so that no cache can flatter.

    Errors: `PreflightError` when the bucket is too short to tell the prompts apart.
    """
    prompts: dict[tuple[Phase, int, int], Prompt] = {}
    taken: set[tuple[int, ...]] = set()
    for phase, stream, turn in _places(profile):
        for attempt in range(_ATTEMPTS):
            name = f"{profile.seed}/{phase}/{stream}/{turn}/{attempt}"
            prompt = exact_prompt(tokenizer, profile.prompt_tokens, name)
            if prompt.ids not in taken:
                break
        else:
            raise PreflightError(
                f"prompts of {profile.prompt_tokens} tokens are too short to be all different"
            )
        taken.add(prompt.ids)
        prompts[phase, stream, turn] = prompt
    return prompts


def _places(profile: BenchProfile) -> Iterator[tuple[Phase, int, int]]:
    rounds: tuple[tuple[Phase, int], ...] = (
        ("warmup", profile.warmup_requests),
        ("measured", profile.requests),
    )
    for phase, count in rounds:
        for turn in range(count):
            for stream in range(profile.clients):
                yield phase, stream, turn


def _encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)
