"""A record's figures against those worked out by hand from a server's own times, through real HTTP."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from lockstep import Chunk, Lockstep, serve

from lean.bench import measure
from lean.bench.client import ClientSettings, CompletionClient, CompletionRequest
from lean.bench.metrics import RequestMetrics, request_metrics
from lean.bench.prompt import Prompt
from lean.bench.record import read_run
from lean.bench.sample import Sample

MS = 1_000_000
# 64 tokens in 32 chunks, as speculation would batch them: 1, then 3, 1, 2, 3, 1, 2, ..., and an empty one
GAPS = tuple(Chunk(after_ns=(5 + turn % 4) * MS, tokens=(3, 1, 2)[turn % 3]) for turn in range(31))
SCRIPT = (Chunk(after_ns=40 * MS, tokens=1), *GAPS, Chunk(after_ns=9 * MS, tokens=0))


def by_hand(first_ns: int, arrivals: list[tuple[int, int]]) -> dict[str, Any]:
    """The figures of one request from (time, tokens) of its arrivals and when it was sent."""
    carrying = [(at, tokens) for at, tokens in arrivals if tokens]
    total = sum(tokens for _, tokens in carrying)
    begin, end = carrying[0][0], carrying[-1][0]
    gaps = []
    for (before, _), (at, tokens) in itertools.pairwise(carrying):
        gaps += [(at - before) / 1e9 / tokens] * tokens
    return {
        "tokens": total,
        "ttft_s": (begin - first_ns) / 1e9,
        "e2e_s": (end - first_ns) / 1e9,
        "tpot_s": (end - begin) / 1e9 / (total - 1),
        "itl_s": gaps,
    }


def scripted(sent_ns: int) -> dict[str, Any]:
    """`by_hand` of SCRIPT for a request sent at `sent_ns`."""
    at, arrivals = sent_ns, []
    for chunk in SCRIPT:
        at += chunk.after_ns
        arrivals.append((at, chunk.tokens))
    return by_hand(sent_ns, arrivals)


def complete(lockstep: Lockstep, tokens: int) -> Sample:
    """One request of four prompt tokens through the real client."""

    async def go(url: str) -> Sample:
        settings = ClientSettings(connect=10, read=60, request=120)
        async with CompletionClient(url, "t", settings, lockstep.clock_ns) as client:
            prompt = Prompt(ids=(5, 6, 7, 8), text="a b c d")
            request = CompletionRequest(
                model="lockstep",
                prompt=prompt,
                prompt_form="ids",
                max_new_tokens=tokens,
                phase="measured",
                stream=0,
                round=0,
            )
            return await client.complete(request)

    with serve(lockstep) as url:
        return asyncio.run(go(url))


def metrics_of(sample: Sample) -> RequestMetrics:
    found = request_metrics(sample)
    assert found is not None
    return found


def test_one_request_gives_every_figure_exactly_as_the_script_says() -> None:
    sample = complete(Lockstep(chunks=SCRIPT, virtual=True), 64)
    assert sample.error is None and sample.usage_completion_tokens == sample.counted_tokens == 64
    assert sample.event_tokens == tuple(chunk.tokens for chunk in SCRIPT)
    found, expected = metrics_of(sample), scripted(sample.sent_ns)
    assert found.tokens == expected["tokens"] == 64
    assert found.ttft_s == expected["ttft_s"] == 0.040
    assert found.tpot_s == expected["tpot_s"]
    assert found.e2e_s == expected["e2e_s"]
    assert list(found.itl_s) == expected["itl_s"] and len(found.itl_s) == 63
    assert found.tokens_per_s == 64 / expected["e2e_s"]
    assert found.decode_tokens_per_s == 1 / expected["tpot_s"]


def test_a_chunk_of_many_tokens_at_once_is_as_many_tokens_and_one_arrival() -> None:
    sample = complete(Lockstep(chunks=(Chunk(10 * MS, 1), Chunk(30 * MS, 10)), virtual=True), 11)
    found = metrics_of(sample)
    assert found.itl_s == (0.003,) * 10
    assert (found.tpot_s, found.tokens_per_s) == (0.003, 11 / 0.040)


def test_on_the_machine_s_own_clock_every_figure_lies_between_the_server_s_times() -> None:
    """Chunk i arrives after it was written, and before the server knew that; so it holds on any machine."""
    lockstep = Lockstep(chunks=SCRIPT, virtual=False)
    sample = complete(lockstep, 64)
    ((wrote,), (timed,)) = lockstep.wrote, lockstep.timed
    for low, arrived, high in zip(wrote, sample.event_ns, timed, strict=True):
        assert low <= arrived <= high
    carrying = [i for i, chunk in enumerate(SCRIPT) if chunk.tokens]
    first, last = carrying[0], carrying[-1]
    found, sent = metrics_of(sample), sample.sent_ns
    assert wrote[first] - sent <= round(found.ttft_s * 1e9) <= timed[first] - sent
    assert wrote[last] - sent <= round(found.e2e_s * 1e9) <= timed[last] - sent
    assert wrote[last] - timed[first] <= round(found.tpot_s * 63e9) <= timed[last] - wrote[first]
    assert 64e9 / (timed[last] - sent) * 0.999999 <= found.tokens_per_s
    assert found.tokens_per_s <= 64e9 / (wrote[last] - sent) * 1.000001
    assert sum(found.itl_s) == pytest.approx(found.e2e_s - found.ttft_s, rel=1e-9)


@pytest.fixture
def lockstep_run(bench: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A whole run from the command line on the virtual clock; its record."""
    lockstep = Lockstep(chunks=SCRIPT, virtual=True)
    monkeypatch.setattr(measure, "clock_since_now", lambda: lockstep.clock_ns)
    with serve(lockstep) as url:
        code, document = bench.run(capsys, url=url)
    assert code == 0, document
    return read_run(Path(document["run"]))


def test_the_record_of_a_whole_run_has_the_script_s_figures(lockstep_run: Any) -> None:
    metrics, expected = lockstep_run.metrics, scripted(0)
    exactly = {"rel": 1e-12}  # the same numbers, from times that do not begin at 0
    assert metrics.ttft_s.count == 3
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        summary = getattr(metrics, name)
        assert summary.median == pytest.approx(expected[name], **exactly), name
        assert summary.minimum == pytest.approx(summary.maximum, **exactly)
    assert metrics.itl_s.count == 3 * 63
    assert metrics.itl_s.median == pytest.approx(median(expected["itl_s"]), **exactly)
    assert metrics.itl_s.mean == pytest.approx(sum(expected["itl_s"]) / 63, **exactly)
    assert metrics.tokens_per_s.median == pytest.approx(64 / expected["e2e_s"], **exactly)
    assert metrics.decode_tokens_per_s.median == pytest.approx(1 / expected["tpot_s"], **exactly)
