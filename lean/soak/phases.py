"""One replay of one phase: what is sent, in which order, and the row that each request leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from lean.bench.client import ClientSettings, CompletionClient, CompletionRequest, clock_since_now
from lean.bench.metrics import arrivals, token_gaps_s
from lean.bench.sample import Sample
from lean.contracts.soak import Limits
from lean.errors import NotReadyError
from lean.soak.engine import Engine
from lean.soak.rows import Row
from lean.soak.workload import Request

_HANGS = ("no end within", "ReadTimeout")
IN_A_ROW = 3  # failed requests after which an engine counts as gone


def run_replay(
    engine: Engine, groups: Sequence[Sequence[Request]], limits: Limits, write: Callable[[Row], None]
) -> None:
    """Send a replay and write its rows in order.

    A request that fails is a row with its error. Errors: `NotReadyError` when the engine is dead, hangs, or
    is another one; rows written so far are kept.
    """
    asyncio.run(_replay(engine, groups, limits, write))
    engine.check()


async def _replay(
    engine: Engine, groups: Sequence[Sequence[Request]], limits: Limits, write: Callable[[Row], None]
) -> None:
    settings = ClientSettings(connect=limits.connect_s, read=limits.read_s, request=limits.request_s)
    failed = 0
    async with CompletionClient(engine.url, engine.token, settings, clock_since_now()) as client:
        for group in groups:
            rows = await asyncio.gather(*(_ask(client, engine, asked) for asked in group))
            for row in rows:
                write(row)
                failed = 0 if row.error is None else failed + 1
                if row.error is not None and not row.error.startswith("HTTP "):
                    await asyncio.to_thread(engine.check)  # says more than the row, if it is dead
                if failed >= IN_A_ROW or (row.error or "").startswith(_HANGS):
                    raise NotReadyError(f"arm {engine.arm}: {row.conversation}: {row.error}")


async def _ask(client: CompletionClient, engine: Engine, asked: Request) -> Row:
    request = CompletionRequest(
        model=engine.model,
        prompt=asked.prompt,
        prompt_form="ids" if "ids" in engine.dialect.prompt_forms else "text",
        max_new_tokens=asked.new_tokens,
        phase="measured",
        stream=asked.stream,
        round=asked.turn,
        dialect=engine.dialect,
    )
    sample, text = await client.answer(request)
    row = row_of(asked, sample, text)
    if asked.correct is None or not row.whole:
        return row
    return replace(row, correct=asked.correct(text))


def row_of(asked: Request, sample: Sample, text: str) -> Row:
    """The row of one request."""
    seen = arrivals(sample)
    first = seen[0][0] if seen else None
    return Row(
        conversation=asked.conversation,
        turn=asked.turn,
        stream=asked.stream,
        prompt_sha256=sample.prompt_sha256,
        prompt_characters=len(asked.prompt.text),
        sent_tokens=len(asked.prompt.ids),
        prompt_tokens=sample.usage_prompt_tokens,
        asked_tokens=asked.new_tokens,
        tokens=sample.usage_completion_tokens,
        came_tokens=sample.counted_tokens,
        started_utc=sample.started_utc,
        wall_s=round((sample.end_ns - sample.sent_ns) / 1e9, 6),
        ttft_s=None if first is None else round((first - sample.sent_ns) / 1e9, 6),
        token_deltas_us=tuple(round(gap * 1e6) for _, gap in token_gaps_s(sample)),
        finish_reason=sample.finish_reason,
        text=text,
        error=sample.error,
    )
