"""Whether an arm's answers read like answers: warnings for a person, which no verdict depends on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from lean.contracts.soak import PHASES, PhaseName
from lean.soak.rows import ArmRows, Row

Check = Literal[
    "replacement characters", "repeated 4-grams", "few trigrams", "unsteady", "other prompts", "diverges"
]
REPLACEMENT = "\ufffd"
REPEATED, UNIQUE = 0.5, 0.5  # shares: of 4-grams seen before, and of different trigrams
LONGEST_WORD = 20  # characters on average; text with longer ones has no spaces, and is read by character

_SAYS: Mapping[Check, str] = {
    "replacement characters": "hold U+FFFD, which stands for bytes that are no UTF-8",
    "repeated 4-grams": f"repeat over {REPEATED:.0%} of their 4-grams",
    "few trigrams": f"have under {UNIQUE:.0%} different trigrams",
    "unsteady": "are not what the first replay answered to the same prompt",
    "other prompts": "answer another prompt than the baseline arm's, and say nothing about divergence",
    "diverges": "differ from the baseline arm's",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CoherenceWarning:
    """`rows` of `of` answers show it. `place` names the first of them, or the one that diverges earliest.

    `words`, `characters`: how much of that answer is still the baseline's, of a divergence.
    """

    check: Check
    rows: int
    of: int
    place: str
    words: int | None = None
    characters: int | None = None

    @property
    def sentence(self) -> str:
        """The warning for a page."""
        says = f"{self.rows:,} of {self.of:,} answers {_SAYS[self.check]}"
        if self.words is None:
            return f"{says} (first: {self.place})"
        words = "1 word" if self.words == 1 else f"{self.words:,} words"
        where = f"after {words}, {self.characters:,} characters"
        return f"{says}, at the earliest {where} ({self.place})"


Key = tuple[PhaseName, int, str, int, int]  # phase, replay, conversation, turn, stream


def coherence(arm: ArmRows, baseline: ArmRows | None) -> tuple[CoherenceWarning, ...]:
    """What stands out in an arm's answers, failed requests left out. `baseline`: None for itself."""
    answers = dict(_answers(arm))
    found: dict[Check, list[Key]] = {check: [] for check in _SAYS}
    loops: dict[str, tuple[bool, bool]] = {}  # greedy replays answer alike, so most texts come again
    first_said: dict[tuple[object, ...], str] = {}
    for key, row in answers.items():
        if REPLACEMENT in row.text:
            found["replacement characters"].append(key)
        if row.text not in loops:
            loops[row.text] = _loops(row.text)
        repeated, few = loops[row.text]
        if repeated:
            found["repeated 4-grams"].append(key)
        if few:
            found["few trigrams"].append(key)
        if first_said.setdefault((key[0], *key[2:], row.prompt_sha256), row.text) != row.text:
            found["unsteady"].append(key)
    warnings = [
        CoherenceWarning(check=check, rows=len(keys), of=len(answers), place=_place(keys[0]))
        for check, keys in found.items()
        if keys
    ]
    return (*warnings, *(() if baseline is None else _divergence(answers, dict(_answers(baseline)))))


def _answers(arm: ArmRows) -> Iterator[tuple[Key, Row]]:
    for phase in PHASES:
        replays = ((arm.quality,) if arm.quality else ()) if phase == "quality" else arm.replays(phase)
        for number, rows in enumerate(replays, start=1):
            for row in rows:
                if row.error is None:
                    yield (phase, number, row.conversation, row.turn, row.stream), row


def _loops(text: str) -> tuple[bool, bool]:
    """Whether it repeats its 4-grams, and whether it has few trigrams; of words, or of characters."""
    words: list[str] = text.split()
    if len(text) > LONGEST_WORD * len(words):
        words = list(text)
    fours, threes = len(words) - 3, len(words) - 2
    if fours < 1:
        return False, False
    unique = len(set(zip(words, words[1:], words[2:], words[3:], strict=False)))
    different = len(set(zip(words, words[1:], words[2:], strict=False)))
    return 1 - unique / fours > REPEATED, different / threes < UNIQUE


def _divergence(answers: Mapping[Key, Row], theirs: Mapping[Key, Row]) -> Iterator[CoherenceWarning]:
    """How many answers differ from the baseline arm's to the same prompts, and where at the earliest."""
    both = [key for key in answers if key in theirs]
    same = [key for key in both if answers[key].prompt_sha256 == theirs[key].prompt_sha256]
    if len(same) < len(both):
        other = next(key for key in both if answers[key].prompt_sha256 != theirs[key].prompt_sha256)
        count = len(both) - len(same)
        yield CoherenceWarning(check="other prompts", rows=count, of=len(both), place=_place(other))
    places = {
        key: _common(answers[key].text, theirs[key].text)
        for key in same
        if answers[key].text != theirs[key].text
    }
    if places:
        earliest = min(places, key=lambda key: places[key])
        yield CoherenceWarning(
            check="diverges",
            rows=len(places),
            of=len(same),
            place=_place(earliest),
            words=_common(answers[earliest].text.split(), theirs[earliest].text.split()),
            characters=places[earliest],
        )


def _common(first: str | list[str], second: str | list[str]) -> int:
    """How many characters or words the two begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))


def _place(key: Key) -> str:
    phase, replay, conversation, turn, stream = key
    if phase == "quality":
        return f"quality, task {conversation}"
    where = f"{phase.replace('_', ' ')}, replay {replay}"
    if phase == "conversations":
        return f"{where}, {conversation} turn {turn}"
    return f"{where}, stream {stream}" if phase == "concurrent" else where
