"""Loads beyond a contract's rounds: more streams than slots, and open loops that no slow answer holds up."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lean.bench import measure
from lean.bench.arrivals import offsets_ns, places, send_on_schedule
from lean.bench.fairness import judge_fairness
from lean.bench.host_state import HostState
from lean.bench.load import load_metrics
from lean.bench.metrics import run_metrics
from lean.bench.record import RunRecord, dump_run, read_run
from lean.bench.results import list_runs
from lean.bench.sample import Sample
from lean.bench.shown_run import metric_rows, run_facts
from lean.bench.store import write_run
from lean.contracts import Arrivals, BenchProfile, from_data, load_contract, load_profile, to_data
from lean.errors import ContractError

MakeSample = Callable[..., Sample]
S = 1_000_000_000
MS = 1_000_000
CLOSED = BenchProfile(
    id="decode_8_16", prompt_tokens=8, decode_tokens=16, batch=2, warmup_requests=1, requests=3, seed=7
)


def open_loop(process: str = "poisson", rate: float = 10.0, **changes: Any) -> BenchProfile:
    arrivals = Arrivals(process=process, rate_per_s=rate, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(CLOSED, arrivals=arrivals)


# --- the profile


def test_a_profile_that_says_nothing_of_load_is_rounds_of_as_many_streams_as_slots() -> None:
    profile = load_profile("decode_64_256_b4")
    assert profile.in_rounds_of_batch and profile.clients == 4 and not profile.arrivals.is_open
    old = {k: v for k, v in to_data(profile).items() if k not in ("concurrency", "arrivals")}
    assert from_data(BenchProfile, old, "old") == profile


def test_the_load_of_a_profile_is_read_strictly() -> None:
    data = to_data(CLOSED) | {"arrivals": {"process": "fixed", "rate_per_s": 4, "ttft_limit_s": 0.5}}
    profile = from_data(BenchProfile, data, "x")
    assert profile.arrivals == Arrivals(process="fixed", rate_per_s=4.0, ttft_limit_s=0.5)
    assert not profile.in_rounds_of_batch


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"concurrency": 0}, "concurrency: expected 1 to 4096, got 0"),
        ({"concurrency": 5000}, "concurrency: expected 1 to 4096, got 5000"),
        ({"arrivals": {"process": "bursts"}}, "arrivals.process: expected one of closed, fixed, poisson"),
        ({"arrivals": {"process": "fixed"}}, "fixed arrivals need requests a second"),
        ({"arrivals": {"process": "fixed", "rate_per_s": 0}}, "rate_per_s: expected more than 0, got 0"),
        ({"arrivals": {"process": "closed", "rate_per_s": 1}}, "closed rounds have no rate"),
        ({"arrivals": {"process": "closed", "seed": 1}}, "closed rounds have no rate, seed or limits"),
        (
            {"arrivals": {"process": "poisson", "rate_per_s": 1, "tpot_limit_s": -1}},
            "tpot_limit_s: expected more than 0, got -1",
        ),
        (
            {"concurrency": 4, "arrivals": {"process": "poisson", "rate_per_s": 1}},
            "an open loop sends by the clock",
        ),
    ],
)
def test_a_load_that_cannot_be_is_named(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ContractError, match=problem):
        from_data(BenchProfile, to_data(CLOSED) | changes, "x")


def test_a_rate_alone_is_of_poisson_arrivals_and_keeps_what_the_profile_says_of_them() -> None:
    assert CLOSED.with_load(rate_per_s=3.0).arrivals == Arrivals(process="poisson", rate_per_s=3.0)
    own = open_loop("fixed", 2.0, ttft_limit_s=0.1)
    assert own.with_load(rate_per_s=3.0).arrivals == Arrivals(
        process="fixed", rate_per_s=3.0, ttft_limit_s=0.1
    )
    assert own.with_load(process="closed").in_rounds_of_batch
    assert CLOSED.with_load() == CLOSED == CLOSED.with_load(concurrency=CLOSED.batch)
    wide = CLOSED.with_load(concurrency=9)
    assert (wide.clients, wide.with_load().clients, wide.with_load(concurrency=2)) == (9, 9, CLOSED)


# --- when requests are due


def test_fixed_arrivals_are_evenly_spaced_from_the_first_at_once() -> None:
    assert offsets_ns(open_loop("fixed", 4.0)) == tuple(250 * MS * i for i in range(6))


def test_poisson_arrivals_are_exponential_gaps_of_the_rate_and_the_same_for_the_same_seed() -> None:
    many = dataclasses.replace(open_loop(rate=20.0, seed=3), batch=8, requests=2500)
    due = offsets_ns(many)
    gaps = [(later - before) / 1e9 for before, later in pairwise((0, *due))]
    assert statistics.mean(gaps) == pytest.approx(1 / 20, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 20, rel=0.03)  # an exponential's mean is its deviation
    assert statistics.median(gaps) == pytest.approx(0.6931 / 20, rel=0.03)
    assert offsets_ns(many) == due
    assert offsets_ns(dataclasses.replace(many, arrivals=dataclasses.replace(many.arrivals, seed=4))) != due
    assert offsets_ns(open_loop()) == offsets_ns(open_loop(seed=CLOSED.seed))


def test_every_prompt_of_the_profile_is_sent_once() -> None:
    found = list(places(open_loop()))
    assert len(found) == len(set(found)) == 6
    assert set(found) == {(stream, turn) for stream in range(2) for turn in range(3)}


class Service:
    """Answers to requests when it is let, on a clock that only stands or jumps."""

    def __init__(self, make_sample: MakeSample, **changes: Any) -> None:
        self.make, self.changes = make_sample, changes
        self.now = 0
        self.sent: list[tuple[int, int]] = []  # (due, when)
        self.answers = asyncio.Event()

    def clock_ns(self) -> int:
        self.now += MS  # time goes by while the client works
        return self.now

    async def send(self, stream: int, turn: int, due: int) -> Sample:
        self.sent.append((due, self.now))
        await self.answers.wait()
        return self.make(stream=stream, round=turn, scheduled_ns=due, **self.changes)


def test_requests_go_out_when_they_are_due_though_nothing_was_answered(make_sample: MakeSample) -> None:
    profile = open_loop("fixed", 100.0)

    async def go() -> tuple[Service, list[Sample]]:
        service = Service(make_sample)
        running = asyncio.create_task(send_on_schedule(profile, service.send, service.clock_ns))
        while len(service.sent) < 6:  # all of them, with not one answer
            await asyncio.sleep(0)
        service.answers.set()
        return service, await running

    service, samples = asyncio.run(go())
    assert len(samples) == 6
    begin = service.sent[0][0]
    assert [due - begin for due, _ in service.sent] == list(offsets_ns(profile))
    assert all(sent >= due for due, sent in service.sent)


def test_after_one_that_failed_no_more_are_sent_and_a_refusal_is_no_failure(make_sample: MakeSample) -> None:
    async def go(**changes: Any) -> int:
        service = Service(make_sample, **changes)
        service.answers.set()
        return len(await send_on_schedule(open_loop("fixed", 1000.0), service.send, service.clock_ns))

    assert asyncio.run(go(error="HTTP 429: full", http_status=429)) == 6
    assert asyncio.run(go(error="HTTP 500: fell over", http_status=500)) < 6


# --- what became of a load


def test_a_request_that_was_sent_late_is_measured_from_when_it_was_due(make_sample: MakeSample) -> None:
    """TTFT 10 ms and E2E 40 ms since it was sent, which was 300 ms after it was due."""
    late = make_sample(sent_ns=0, scheduled_ns=-300 * MS)
    found = load_metrics(open_loop(), (late,))
    assert found is not None and found.due_ttft_s is not None and found.due_e2e_s is not None
    assert found.due_ttft_s.median == pytest.approx(0.310)
    assert found.due_e2e_s.median == pytest.approx(0.340)
    assert found.send_delay_s is not None and found.send_delay_s.median == pytest.approx(0.300)
    assert found.window_s == pytest.approx(0.340)


def test_goodput_and_throughput_over_the_window_worked_out_by_hand(make_sample: MakeSample) -> None:
    """Six requests, due each 100 ms: one refused, one cut, one late by its first token, one slow a token."""
    profile = open_loop("fixed", 10.0, ttft_limit_s=0.050, tpot_limit_s=0.002)

    def at(i: int, first_ms: int = 10, gap_ms: int = 2, **changes: Any) -> Sample:
        due = 100 * MS * i
        times = tuple(due + (first_ms + gap_ms * token) * MS for token in range(16))
        return make_sample(
            stream=i % 2, round=i // 2, scheduled_ns=due, sent_ns=due + MS, event_ns=times, **changes
        )

    empty = {"event_ns": (), "event_tokens": ()}
    refused = make_sample(
        stream=0, round=1, scheduled_ns=200 * MS, sent_ns=200 * MS, error="HTTP 429", http_status=429, **empty
    )
    samples = (at(0), at(1), refused, at(3, error="cut"), at(4, first_ms=51), at(5, gap_ms=4))
    warm = make_sample(phase="warmup", sent_ns=-S)
    found = load_metrics(profile, (warm, *samples))
    assert found is not None
    assert (found.offered, found.answered, found.refused, found.failed, found.in_time) == (6, 4, 1, 1, 2)
    window = 0.570  # the last token: due at 500 ms, first after 10, then fifteen gaps of 4
    assert found.window_s == pytest.approx(window)
    assert found.offered_per_s == pytest.approx(10.0)
    assert found.answered_per_s == pytest.approx(4 / window)
    assert found.goodput_per_s == pytest.approx(2 / window)
    assert found.tokens_per_s == pytest.approx(64 / window)
    assert found.goodput_tokens_per_s == pytest.approx(32 / window)
    metrics = run_metrics(load_contract("tiny-cpu"), profile, samples)
    assert metrics.tokens_per_s is not None and metrics.tokens_per_s.median == pytest.approx(64 / window)
    assert metrics.bytes_per_s is None and metrics.bytes_per_step is None  # nobody knows the batch of a step


def test_an_answer_of_fewer_tokens_is_no_goodput(make_sample: MakeSample) -> None:
    short = make_sample(scheduled_ns=0, usage_completion_tokens=15)
    found = load_metrics(open_loop(), (short,))
    assert found is not None and (found.answered, found.in_time) == (1, 0)


def test_a_contract_s_own_rounds_have_no_load_to_speak_of(fair_samples: tuple[Sample, ...]) -> None:
    assert load_metrics(CLOSED, fair_samples) is None
    assert load_metrics(open_loop(), ()) is None


def test_refusals_are_counted_apart_only_where_the_load_may_be_too_much(make_sample: MakeSample) -> None:
    contract = load_contract("tiny-cpu")
    wide = dataclasses.replace(CLOSED, concurrency=3)
    full = [make_sample(stream=s, round=t) for t in range(3) for s in range(3)]
    full[4] = dataclasses.replace(full[4], error="HTTP 429: full", http_status=429, finished=False)
    assert judge_fairness(contract, wide, full).fair
    assert not judge_fairness(contract, CLOSED, [s for s in full if s.stream < 2]).fair
    all_refused = [dataclasses.replace(s, error="HTTP 429", http_status=429) for s in full]
    assert not judge_fairness(contract, wide, all_refused).fair


def test_a_record_with_a_load_is_read_back_shown_and_drawn(
    tmp_path: Path, make_record: Callable[..., RunRecord], make_sample: MakeSample
) -> None:
    profile = open_loop("fixed", 10.0)
    samples = tuple(make_sample(stream=i % 2, round=i // 2, scheduled_ns=0) for i in range(6))
    metrics = run_metrics(load_contract("tiny-cpu"), profile, samples)
    record = make_record(
        profile=profile, samples=samples, metrics=metrics, load=load_metrics(profile, samples)
    )
    path = write_run(record, tmp_path, [])
    assert read_run(path) == record
    report = (path / "report.md").read_text()
    assert "An open loop of fixed arrivals of 10/s" in report and "TTFT since it was due (ms)" in report
    assert "6 offered, 6 answered, 0 refused, 0 failed" in dict(run_facts(record))["load"]
    assert "goodput" in dict(run_facts(record))["rates"]
    assert {"TTFT since it was due", "sent after it was due"} <= {row.name for row in metric_rows(record)}


def test_a_record_from_before_loads_still_reads(
    tmp_path: Path, make_record: Callable[..., RunRecord]
) -> None:
    record = make_record()
    document = json.loads(dump_run(record))
    del document["load"]
    for name in ("concurrency", "arrivals"):
        del document["profile"][name]
    for sample in document["samples"]:
        del sample["scheduled_ns"]
    file = tmp_path / "run.json"
    file.write_text(json.dumps(document))
    assert read_run(file) == record


# --- whole runs


def test_an_open_loop_keeps_when_each_request_was_due_and_sent_and_is_exploratory(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = bench.run(capsys, rate="200", requests="8")
    assert code == 0, document
    record = read_run(Path(document["run"]))
    assert record.overridden == ("requests", "arrivals")
    assert record.profile.arrivals == Arrivals(process="poisson", rate_per_s=200.0)
    measured = [s for s in record.samples if s.phase == "measured"]
    due = [s.scheduled_ns for s in measured]
    assert None not in due and due == sorted(due)
    gaps = [b - a for a, b in pairwise(due)]
    assert gaps == [b - a for a, b in pairwise(offsets_ns(record.profile))]
    assert all(s.sent_ns >= s.due_ns for s in measured)
    assert record.load is not None and (record.load.offered, record.load.in_time) == (8, 8)
    assert document["load"]["offered"] == 8
    assert [s.scheduled_ns for s in record.samples if s.phase == "warmup"] == [None]
    (row,) = list_runs(bench.results).rows
    assert row.load == "poisson arrivals of 200/s"
    reason = "poisson arrivals of 200/s, not rounds of as many streams as slots"
    assert record.label == "exploratory" and reason in record.label_reasons


def test_more_streams_than_slots_run_together_and_refusals_are_counted(
    bench: Any, service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    service.script.refuse_every = 4  # the 4th, 8th and 12th, of which the first three are the warm-up
    code, document = bench.run(capsys, concurrency="3")
    assert code == 0, document
    record = read_run(Path(document["run"]))
    assert record.status == "ok" and record.profile.clients == 3
    assert len(record.samples) == 12 and record.load is not None
    assert (record.load.offered, record.load.answered, record.load.refused) == (9, 6, 3)
    assert record.load.offered_per_s is None and record.load.goodput_per_s is not None
    assert sum(s.http_status == 429 for s in record.samples) == 3
    assert "HTTP 429: all slots are taken" in (Path(document["run"]) / "log.txt").read_text()
    assert record.metrics.tokens_per_s is not None and record.metrics.tokens_per_s.count == 3
    assert "3 stream(s) on 1 slot(s), not rounds of as many streams as slots" in record.label_reasons


def test_a_refusal_in_a_contract_s_own_rounds_is_unfair(
    bench: Any, service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    service.script.refuse_every = 3
    code, document = bench.run(capsys)
    assert code == 7 and "HTTP 429: all slots are taken" in document["error"]["message"]


def test_a_service_that_refuses_every_warm_up_is_recorded_and_named(
    bench: Any, service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    service.script.refuse_every = 1
    code, document = bench.run(capsys, rate="100")
    assert code == 7 and "HTTP 429: all slots are taken" in document["error"]["message"]
    assert read_run(Path(document["run"])).status == "failed"


@pytest.mark.parametrize(
    ("script", "settings", "said"),
    [
        ({"cut_after": 5}, {}, "RemoteProtocolError"),
        ({"raw_event": b"data: {garbage\n\n"}, {}, "bad event"),
        ({"forever": True, "gap_s": 0.01}, {"request_timeout": "0.5"}, "no end within 0.5 s"),
        ({"silent_end_after": 3}, {}, "the stream ended before [DONE]"),
        ({"tokens_off": -1}, {}, "the server counted 63"),
        ({"usage": False}, {}, "the server reported no completion_tokens"),
    ],
)
@pytest.mark.parametrize("load", [{}, {"rate": "50"}, {"concurrency": "2"}])
def test_whatever_a_service_does_while_measured_is_named_and_nothing_seen_is_lost(
    bench: Any,
    service: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    script: dict[str, Any],
    settings: dict[str, str],
    said: str,
    load: dict[str, str],
) -> None:
    def misbehave() -> HostState:
        for name, value in script.items():
            setattr(service.script, name, value)
        return real()

    real = measure.read_host_state
    monkeypatch.setattr(measure, "read_host_state", misbehave)
    code, document = bench.run(capsys, **load, **settings)
    assert code == 7 and said in document["error"]["message"]
    record = read_run(Path(document["run"]))
    assert record.status == "invalid"
    sent = len(service.script.bodies)
    assert len(record.samples) == sent  # every request that went out has its sample
    measured = [s for s in record.samples if s.phase == "measured"]
    assert measured and all(s.http_status == 200 and s.first_byte_ns is not None for s in measured)
