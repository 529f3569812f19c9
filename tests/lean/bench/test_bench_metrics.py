"""Metrics against values worked out by hand and against numpy."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from lean.bench.metrics import (
    arrivals,
    percentile,
    request_metrics,
    round_tokens_per_s,
    run_metrics,
    summarize,
    token_gaps_s,
)
from lean.bench.sample import Sample
from lean.bench.traffic import step_traffic
from lean.contracts import encoded_contract, load_contract, load_profile

MakeSample = Callable[..., Sample]
MS = 1_000_000


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_every_statistic_agrees_with_numpy(count: int) -> None:
    rng = random.Random(count)
    values = [rng.expovariate(3.0) for _ in range(count)]
    summary = summarize(values)
    assert summary is not None
    assert summary.count == count
    assert summary.median == pytest.approx(np.median(values))
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.p95 == pytest.approx(np.percentile(values, 95))
    assert summary.p99 == pytest.approx(np.percentile(values, 99))
    assert (summary.minimum, summary.maximum) == (min(values), max(values))
    if count > 1:
        assert summary.std == pytest.approx(np.std(values, ddof=1))
    else:
        assert summary.std is None


def test_percentiles_interpolate_between_the_closest_ranks() -> None:
    assert percentile([10.0, 20.0, 30.0, 40.0], 50) == 25.0
    assert percentile([10.0, 20.0, 30.0, 40.0], 95) == pytest.approx(38.5)
    assert percentile([5.0], 99) == 5.0


def test_nothing_measured_has_no_summary() -> None:
    assert summarize(()) is None


def test_a_request_of_sixteen_tokens_worked_out_by_hand(make_sample: MakeSample) -> None:
    metrics = request_metrics(make_sample())  # first token after 10 ms, fifteen gaps of 2 ms
    assert metrics is not None
    assert metrics.ttft_s == pytest.approx(0.010)
    assert metrics.e2e_s == pytest.approx(0.040)
    assert metrics.tpot_s == pytest.approx(0.030 / 15)
    assert metrics.itl_s == pytest.approx([0.002] * 15)
    assert metrics.tokens_per_s == pytest.approx(16 / 0.040)
    assert metrics.decode_tokens_per_s == pytest.approx(500)


def test_a_chunk_of_several_tokens_counts_as_that_many_gaps(make_sample: MakeSample) -> None:
    sample = make_sample(
        event_ns=(10 * MS, 14 * MS, 20 * MS), event_tokens=(1, 2, 3), usage_completion_tokens=6
    )
    assert token_gaps_s(sample) == (
        (2, pytest.approx(0.002)),
        (3, pytest.approx(0.002)),
        (4, pytest.approx(0.002)),
        (5, pytest.approx(0.002)),
        (6, pytest.approx(0.002)),
    )
    metrics = request_metrics(sample)
    assert metrics is not None
    assert metrics.tpot_s == pytest.approx(0.010 / 5)


def test_chunks_of_one_read_are_one_arrival_and_empty_chunks_are_none(make_sample: MakeSample) -> None:
    sample = make_sample(
        event_ns=(10 * MS, 10 * MS, 12 * MS, 13 * MS), event_tokens=(1, 1, 0, 2), usage_completion_tokens=4
    )
    assert arrivals(sample) == ((10 * MS, 2), (13 * MS, 2))
    assert token_gaps_s(sample) == ((3, pytest.approx(0.0015)), (4, pytest.approx(0.0015)))


def test_the_end_is_the_last_token_and_not_the_end_of_the_stream(make_sample: MakeSample) -> None:
    metrics = request_metrics(make_sample(end_ns=10**12))
    assert metrics is not None and metrics.e2e_s == pytest.approx(0.040)


def test_unknown_counts_give_no_inter_token_latency_but_the_rest(make_sample: MakeSample) -> None:
    metrics = request_metrics(make_sample(event_tokens=(None,) * 16))
    assert metrics is not None
    assert metrics.itl_s == ()
    assert metrics.tpot_s == pytest.approx(0.002)


@pytest.mark.parametrize(
    "changes",
    [
        {"error": "cut"},
        {"usage_completion_tokens": None, "event_tokens": (None,) * 16},
        {"usage_completion_tokens": 1},
        {"event_ns": (), "event_tokens": ()},
        {"event_ns": (5,), "event_tokens": (16,)},
    ],
)
def test_a_request_without_enough_data_has_no_metrics(
    make_sample: MakeSample, changes: dict[str, object]
) -> None:
    assert request_metrics(make_sample(**changes)) is None


def test_a_round_counts_all_streams_from_its_first_send_to_its_last_token(make_sample: MakeSample) -> None:
    early = make_sample(stream=0)
    late = make_sample(stream=1, event_ns=tuple(20 * MS + 4 * MS * i for i in range(16)))  # ends at 80 ms
    assert round_tokens_per_s((early, late)) == (pytest.approx(32 / 0.080),)


def test_a_round_with_a_failed_stream_has_no_rate(make_sample: MakeSample) -> None:
    assert round_tokens_per_s((make_sample(stream=0), make_sample(stream=1, error="HTTP 500"))) == ()


def test_warm_up_requests_do_not_count(make_sample: MakeSample) -> None:
    contract, profile = load_contract("tiny-cpu"), load_profile("decode_64_256")
    slow = make_sample(phase="warmup", event_ns=tuple(10**9 * (i + 1) for i in range(16)))
    metrics = run_metrics(contract, profile, (slow, make_sample()))
    assert metrics.ttft_s is not None
    assert (metrics.ttft_s.count, metrics.ttft_s.maximum) == (1, pytest.approx(0.010))


def test_a_step_of_the_4b_contract_reads_its_checkpoint_once_per_batch() -> None:
    contract = load_contract("qwen3-4b-base-bf16-gb10")
    # model.safetensors.index.json of Qwen/Qwen3-4B-Base says total_size 8044936192: BF16, head tied.
    assert contract.model.decode_parameters * 2 == 8_044_936_192
    one = step_traffic(contract, load_profile("decode_64_256"))
    eight = step_traffic(contract, load_profile("decode_64_256_b8"))
    assert one.weight_bytes == eight.weight_bytes == 8_044_936_192
    # The cache for 320 tokens takes 47,185,920 B; the mean step sees 64 + 256 / 2 = 192 of them.
    assert one.kv_bytes == 47_185_920 * 192 / 320
    assert eight.kv_bytes == 8 * one.kv_bytes


@pytest.mark.parametrize(
    ("encoding", "values", "rows"),
    # Bytes of a weight: a code and its share of a factor; bytes of a row: its scale, and its curve.
    [("fp8-e4m3", 1.0, 4), ("int4-codebook", 0.5, 4 + 2), ("nvfp4", 0.5 + 1 / 16, 4)],
)
def test_a_step_reads_encoded_weights_with_their_scales_and_tables(
    encoding: str, values: float, rows: int
) -> None:
    contract = encoded_contract(load_contract("qwen3-4b-base-bf16-gb10"), encoding)
    matrices, norms = 3_633_315_840 + 388_956_160, 196_096  # layers and head; all norms together
    assert matrices + norms == contract.model.decode_parameters
    lines = 36 * (6144 + 2560 + 2 * 9728 + 2560) + 151_936
    found = step_traffic(contract, load_profile("decode_64_256")).weight_bytes
    assert found == values * matrices + rows * lines + 2 * norms


def test_bandwidth_is_the_step_over_tpot_and_its_share_that_of_the_data_sheet(
    make_sample: MakeSample,
) -> None:
    contract, profile = load_contract("qwen3-4b-base-bf16-gb10"), load_profile("decode_64_256")
    metrics = run_metrics(contract, profile, (make_sample(),))
    traffic = step_traffic(contract, profile)
    assert metrics.bytes_per_s is not None and metrics.bandwidth_share is not None
    assert metrics.bytes_per_step == traffic.total_bytes
    assert metrics.bytes_per_s.median == pytest.approx(traffic.total_bytes / 0.002)
    assert metrics.bandwidth_share.median == pytest.approx(traffic.total_bytes / 0.002 / 273e9)


def test_without_a_data_sheet_there_is_no_share(make_sample: MakeSample) -> None:
    metrics = run_metrics(load_contract("tiny-cpu"), load_profile("decode_64_256"), (make_sample(),))
    assert metrics.bytes_per_s is not None
    assert metrics.bandwidth_share is None
