"""Arms of a soak made up: a plan, and what each arm left, with noise from a fixed seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy
import pytest

from lean.contracts.soak import (
    Arm,
    ConcurrentPhase,
    ConversationPhase,
    DataFile,
    LongDecodePhase,
    QualityPhase,
    SoakPlan,
)
from lean.soak.rows import ArmRows, Row

TASKS, TURNS, TOKENS, LONG = 50, 12, 16, 64
DATA = DataFile(file="made.jsonl", sha256="5a" * 32)


def _row(conversation: str, deltas: Any, **changes: Any) -> Row:
    count = len(deltas) + 1
    wall = 0.05 + sum(map(int, deltas)) / 1e6
    fields = {
        "conversation": conversation,
        "turn": 0,
        "stream": 0,
        "prompt_sha256": "ab" * 32,
        "prompt_characters": 40,
        "sent_tokens": 10,
        "prompt_tokens": 10,
        "asked_tokens": count,
        "tokens": count,
        "came_tokens": None,
        "started_utc": "2026-11-22T01:30:00.000+00:00",
        "wall_s": wall,
        "ttft_s": 0.05,
        "token_deltas_us": tuple(map(int, deltas)),
        "finish_reason": "length",
        "text": f"the answer to {conversation} is a lake of {len(conversation)} stones and no more than that",
    }
    return Row(**(fields | changes))


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """A row of these gaps between tokens; any field can be changed."""
    return _row


@pytest.fixture
def make_plan() -> Callable[..., SoakPlan]:
    """A plan of arms by name, the first the baseline, with all four phases."""

    def make(*names: str, arms: tuple[Arm, ...] = (), **changes: Any) -> SoakPlan:
        every = tuple(Arm(name=name) for name in names) + arms
        counts = {"new_tokens": TOKENS, "prompt_tokens": 64}
        fields = {
            "id": "made_up",
            "about": "arms of a test",
            "baseline": every[0].name,
            "arms": every,
            "quality": QualityPhase(data=DATA, tasks=TASKS, new_tokens=TOKENS),
            "conversations": ConversationPhase(data=DATA, conversations=4, **counts),
            "long_decode": LongDecodePhase(prompt_tokens=16, new_tokens=LONG),
            "concurrent": ConcurrentPhase(**counts),
        }
        return SoakPlan(**(fields | changes))

    return make


@pytest.fixture
def make_arm() -> Callable[..., ArmRows]:
    """An arm's rows: `noise` is the relative deviation of a replay's time, `slower` a share of every gap."""

    def make(
        name: str,
        *,
        seed: int = 0,
        noise: float = 0.005,
        slower: float = 0.0,
        right: int = 48,
        replays: int = 5,
        **changes: Any,
    ) -> ArmRows:
        random = numpy.random.default_rng(seed)

        def gaps(count: int) -> Any:
            return random.normal(20_000, 400, count - 1) * (1 + slower)

        def replay(rows: Callable[[], list[Row]]) -> tuple[Row, ...]:
            factor = 1 + noise * random.standard_normal()
            return tuple(
                dataclasses.replace(
                    row,
                    wall_s=row.wall_s * factor,
                    token_deltas_us=tuple(round(delta * factor) for delta in row.token_deltas_us),
                )
                for row in rows()
            )

        fields = {
            "name": name,
            "quality": tuple(_row(f"q{i}", gaps(TOKENS), correct=i < right) for i in range(TASKS)),
            "conversations": tuple(
                replay(lambda: [_row(f"c{i // 3}", gaps(TOKENS), turn=i % 3) for i in range(TURNS)])
                for _ in range(replays)
            ),
            "long_decode": tuple(replay(lambda: [_row("0", gaps(LONG))]) for _ in range(replays)),
            "concurrent": tuple(
                replay(lambda: [_row(str(i), gaps(TOKENS), stream=i) for i in range(2)])
                for _ in range(replays)
            ),
        }
        return ArmRows(**(fields | changes))

    return make
