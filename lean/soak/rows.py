"""One request of a soak and what came of it: a line of JSON in its replay's file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lean.errors import IntegrityError


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One turn. `conversation` names it: of a task its id, of phases with made prompts the stream's number.

    `sent_tokens`: of the prompt; `prompt_tokens` and `tokens` are the server's own counts, `came_tokens`
    those that its chunks carried, None where they do not say. `asked_tokens`: what it was told to make, the
    end of sequence ignored. `ttft_s`: sent to first token, `wall_s`: sent to end, seconds.
    `token_deltas_us`: microseconds between tokens after the first, each chunk's time shared by the tokens it
    carried, for a chunk is not a token. `correct`: of a scored task. `error`: why the request failed.
    """

    conversation: str
    turn: int
    stream: int
    prompt_sha256: str
    prompt_characters: int
    sent_tokens: int
    prompt_tokens: int | None
    asked_tokens: int
    tokens: int | None
    came_tokens: int | None
    started_utc: str
    wall_s: float
    ttft_s: float | None
    token_deltas_us: tuple[int, ...]
    finish_reason: str | None
    text: str
    correct: bool | None = None
    error: str | None = None

    @property
    def whole(self) -> bool:
        """Whether all of the prompt was read and every token asked for came, by each count there is."""
        told = self.came_tokens in (None, self.tokens) and self.prompt_tokens in (None, self.sent_tokens)
        return self.error is None and self.tokens == self.asked_tokens and told

    def line(self) -> str:
        """As it stands in a file, with its newline: ASCII, for a text may hold half of a surrogate pair."""
        document = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps(document, separators=(",", ":")) + "\n"


_NAMES = tuple(field.name for field in fields(Row))
_KINDS = {
    "conversation": str,
    "prompt_sha256": str,
    "text": str,
    "turn": int,
    "stream": int,
    "asked_tokens": int,
}


def read_rows(file: Path) -> tuple[Row, ...]:
    """The rows of one file. Errors: `IntegrityError` naming the line that is none."""
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            rows.append(_row(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(
                f"{file}: line {number}: no row of a soak ({error}); "
                "a file edited by hand cannot be judged, take that folder away and resume"
            ) from None
    return tuple(rows)


def _row(document: dict[str, Any]) -> Row:
    unknown = set(document) - set(_NAMES)
    if unknown:
        raise ValueError(f"unknown {sorted(unknown)[0]!r}")
    deltas = document.pop("token_deltas_us")
    if not isinstance(deltas, list) or not set(map(type, deltas)) <= {int}:
        raise ValueError("token_deltas_us: expected whole numbers")
    row = Row(**document, token_deltas_us=tuple(deltas))
    for name in ("wall_s", "ttft_s"):
        value = getattr(row, name)
        if value is None and name == "ttft_s":
            continue
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise ValueError(f"{name}: expected seconds")
    for name, kind in _KINDS.items():
        if type(getattr(row, name)) is not kind:
            raise ValueError(f"{name}: expected {kind.__name__}")
    return row


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRows:
    """What one arm left, whole replays only, by phase. `quality` is None without a whole pass.

    `not_run`: why the arm has no or not all of its phases. `passes`: each supplementary pass and what became
    of it, `done` or the reason. `effective`: the settings that the engine said it runs with.
    """

    name: str
    quality: tuple[Row, ...] | None
    conversations: tuple[tuple[Row, ...], ...]
    long_decode: tuple[tuple[Row, ...], ...]
    concurrent: tuple[tuple[Row, ...], ...]
    not_run: str | None = None
    passes: tuple[tuple[str, str], ...] = ()
    effective: tuple[tuple[str, str], ...] = ()

    def replays(self, phase: str) -> Sequence[Sequence[Row]]:
        """The replays of a phase other than quality."""
        found: Sequence[Sequence[Row]] = getattr(self, phase)
        return found
