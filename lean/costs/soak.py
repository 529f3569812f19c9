"""What judging a long soak takes: files as large as a real one's, read and summarised; and an append."""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lean.contracts.soak import Arm, ConversationPhase, DataFile, QualityPhase, SoakPlan
from lean.errors import UsageError
from lean.soak.rows import ArmRows, Row, read_rows
from lean.soak.summary import summarize
from lean.soak.verdict import judge

ARMS, REPLAYS, TASKS, WORDS = 4, 5, 50, 36
APPENDS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakCost:
    """`turns` of a replay and gaps of a turn as asked; seconds of every repeat, in order.

    `peak_rss_mib` is of this process from its start, interpreter and numpy with it. `append_us`: microseconds
    to add one row to a journal, written and flushed to the kernel; the median of `appends`.
    """

    arms: int
    replays: int
    turns: int
    gaps: int
    bytes: int
    reading_s: tuple[float, ...]
    summarising_s: tuple[float, ...]
    judging_s: tuple[float, ...]
    peak_rss_mib: float
    appends: int
    append_us: float


def soak_cost(*, turns: int, gaps: int, rounds: int) -> SoakCost:
    """Make the rows of a soak of four arms in a temporary folder, then read and judge them `rounds` times.

    Every answer is another text, although greedy replays repeat theirs: no text is looked at only once.
    Errors: `UsageError` for counts that make no soak.
    """
    if min(turns, gaps, rounds) < 1:
        raise UsageError("--turns, --gaps and --rounds: expected at least 1")
    plan = _plan(turns, gaps)
    reading, summarising, judging = [], [], []
    with tempfile.TemporaryDirectory(prefix="leanstack-soak-") as name:
        folder = Path(name)
        append_us = _append_us(folder / "journal.jsonl", gaps)
        size = _make(plan, folder)
        for _ in range(rounds):
            started = time.perf_counter()
            arms = [_read(folder / arm.name) for arm in plan.arms]
            read = time.perf_counter()
            summaries = summarize(plan, arms)
            summarised = time.perf_counter()
            judge(summaries, plan.baseline, plan.thresholds)
            judging.append(time.perf_counter() - summarised)
            summarising.append(summarised - read)
            reading.append(read - started)
            del arms
    # Linux counts in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return SoakCost(
        arms=ARMS,
        replays=REPLAYS,
        turns=turns,
        gaps=gaps,
        bytes=size,
        reading_s=tuple(reading),
        summarising_s=tuple(summarising),
        judging_s=tuple(judging),
        peak_rss_mib=peak / 2**20,
        appends=APPENDS,
        append_us=append_us,
    )


def _plan(turns: int, gaps: int) -> SoakPlan:
    data = DataFile(file="made.jsonl", sha256="0" * 64)
    arms = tuple(Arm(name=f"wo{2**i}", split_k=2**i) for i in range(ARMS))
    return SoakPlan(
        id="cost",
        about="made rows",
        baseline=arms[0].name,
        arms=arms,
        quality=QualityPhase(data=data, tasks=TASKS, new_tokens=gaps + 1),
        conversations=ConversationPhase(
            data=data, conversations=turns, prompt_tokens=4096, new_tokens=gaps + 1, replays=REPLAYS
        ),
    )


def _make(plan: SoakPlan, folder: Path) -> int:
    """A folder for each arm, a file for each replay; the bytes of all."""
    size = 0
    chance = random.Random(plan.seed)
    for arm in plan.arms:
        (folder / arm.name).mkdir()
        for name, count in [("quality", TASKS), *((f"{i}", _turns(plan)) for i in range(REPLAYS))]:
            file = folder / arm.name / f"{name}.jsonl"
            with file.open("w", encoding="utf-8") as out:
                out.writelines(row.line() for row in _rows(chance, count, _gaps(plan), name == "quality"))
            size += file.stat().st_size
    return size


def _turns(plan: SoakPlan) -> int:
    return plan.conversations.conversations


def _gaps(plan: SoakPlan) -> int:
    return plan.conversations.new_tokens - 1


def _rows(chance: random.Random, count: int, gaps: int, scored: bool) -> Iterator[Row]:
    for number in range(count):
        deltas = tuple(round(chance.gauss(20_000, 400)) for _ in range(gaps))
        yield Row(
            conversation=f"c{number // 4}" if not scored else f"q{number}",
            turn=0 if scored else number % 4,
            stream=0,
            prompt_sha256=f"{number:064x}",
            prompt_characters=400,
            sent_tokens=100,
            prompt_tokens=100,
            asked_tokens=gaps + 1,
            tokens=gaps + 1,
            came_tokens=gaps + 1,
            started_utc="2026-11-22T01:30:00.000+00:00",
            wall_s=0.05 + sum(deltas) / 1e6,
            ttft_s=0.05,
            token_deltas_us=deltas,
            finish_reason="length",
            text=" ".join(f"word{chance.randrange(1000)}" for _ in range(WORDS)),
            correct=number % 25 != 0 if scored else None,
        )


def _read(folder: Path) -> ArmRows:
    return ArmRows(
        name=folder.name,
        quality=read_rows(folder / "quality.jsonl"),
        conversations=tuple(read_rows(folder / f"{i}.jsonl") for i in range(REPLAYS)),
        long_decode=(),
        concurrent=(),
    )


def _append_us(file: Path, gaps: int) -> float:
    row = next(_rows(random.Random(0), 1, gaps, False))
    taken = []
    with file.open("a", encoding="utf-8") as journal:
        for _ in range(APPENDS):
            started = time.perf_counter_ns()
            journal.write(row.line())
            journal.flush()
            taken.append((time.perf_counter_ns() - started) / 1e3)
    return median(taken)
