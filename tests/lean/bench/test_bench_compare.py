"""Two runs side by side: verdicts, noise, intervals against a bootstrap written out, and what is refused."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import pytest

from lean.bench import bootstrap
from lean.bench.bootstrap import ratio_of_medians
from lean.bench.comparable import AXES, axes_named, check_comparable
from lean.bench.compare import ComparedMetric, Comparison, Rules, change_line, compare_runs
from lean.bench.metrics import request_metrics
from lean.bench.record import Failure, RunRecord
from lean.bench.sample import Sample
from lean.contracts import contract_sha256, load_contract
from lean.errors import InvalidRunError, UsageError

MakeRecord = Callable[..., RunRecord]
MakeSample = Callable[..., Sample]
MS = 1_000_000


@pytest.fixture
def paced(make_record: MakeRecord, make_sample: MakeSample) -> Callable[..., RunRecord]:
    """A run whose rounds took so many ms to the first token and so many between two."""

    def make(first: Sequence[float], step: Sequence[float], **changes: Any) -> RunRecord:
        samples = []
        for turn, (ttft, tpot) in enumerate(zip(first, step, strict=True)):
            start = turn * 1000 * MS
            events = tuple(start + int(MS * (ttft + tpot * i)) for i in range(16))
            samples += [
                make_sample(stream=stream, round=turn, sent_ns=start, event_ns=events, end_ns=events[-1] + MS)
                for stream in range(2)
            ]
        return make_record(samples=tuple(samples), **changes)

    return make


def by_metric(found: Comparison) -> dict[str, ComparedMetric]:
    return {one.metric.split(",")[0]: one for one in found.compared}


def test_equal_runs_are_within_noise(make_record: MakeRecord) -> None:
    found = compare_runs(make_record(), make_record(), Rules())
    assert {one.verdict for one in found.compared} == {"within noise"}
    assert (found.differences, found.missing, found.regressed) == ((), (), ())
    assert list(by_metric(found)) == ["generated tokens/s", "TTFT", "TPOT", "ITL", "E2E latency"]
    assert {one.noise_percent for one in found.compared} == {1.0}


def test_each_metric_has_its_own_verdict(paced: Callable[..., RunRecord]) -> None:
    before = paced((10, 10.1, 9.9, 10), (2, 2.01, 1.99, 2))
    after = paced((14, 14.1, 13.9, 14), (1.5, 1.51, 1.49, 1.5))
    found = by_metric(compare_runs(before, after, Rules()))
    assert {name: one.verdict for name, one in found.items()} == {
        "generated tokens/s": "better",
        "TTFT": "worse",
        "TPOT": "better",
        "ITL": "better",
        "E2E latency": "better",
    }
    assert found["TTFT"].change_percent == pytest.approx(40)
    assert found["TTFT"].medians == pytest.approx((10, 14))
    assert found["TTFT"].best == pytest.approx((9.9, 13.9))
    assert found["TPOT"].best == pytest.approx((1.99, 1.49))
    assert "TTFT 10.00 -> 14.00 ms (+40.0 %" in change_line(found["TTFT"])


def test_medians_are_those_of_the_raw_samples(paced: Callable[..., RunRecord]) -> None:
    before, after = paced((10, 30, 11), (2, 2, 5)), paced((12, 13, 50), (3, 2, 2))
    found = by_metric(compare_runs(before, after, Rules()))
    for record, side in ((before, 0), (after, 1)):
        known = [m for s in record.samples if (m := request_metrics(s)) is not None]
        assert found["TTFT"].medians[side] == pytest.approx(1e3 * statistics.median(m.ttft_s for m in known))
        assert found["ITL"].medians[side] == pytest.approx(
            1e3 * statistics.median(gap for m in known for gap in m.itl_s)
        )
        assert found["ITL"].counts[side] == 2 * 3 * 15


def test_a_change_within_what_the_rounds_themselves_spread_is_noise(paced: Callable[..., RunRecord]) -> None:
    wild = (10, 14, 8, 12)
    found = by_metric(compare_runs(paced(wild, (2,) * 4), paced([1.1 * x for x in wild], (2,) * 4), Rules()))
    assert found["TTFT"].verdict == "within noise"
    expected = 2 * 100 * 2**0.5 * statistics.stdev(wild) / statistics.median(wild)
    assert found["TTFT"].noise_percent == pytest.approx(expected)


@pytest.mark.parametrize(("threshold", "verdict"), [(4.0, "worse"), (5.9, "within noise"), (0.0, "worse")])
def test_a_threshold_of_ones_own_takes_the_place_of_the_spread(
    paced: Callable[..., RunRecord], threshold: float, verdict: str
) -> None:
    before, after = paced((10,) * 3, (2,) * 3), paced((10.5,) * 3, (2,) * 3)
    found = by_metric(compare_runs(before, after, Rules(threshold_percent=threshold)))
    assert found["TTFT"].verdict == verdict


def test_a_change_whose_interval_holds_no_change_is_noise_whatever_the_threshold(
    paced: Callable[..., RunRecord],
) -> None:
    before, after = paced((10, 20, 30), (2,) * 3), paced((12, 22, 28), (2,) * 3)
    found = by_metric(compare_runs(before, after, Rules(threshold_percent=0.5)))["TTFT"]
    assert found.interval is not None and found.interval.holds(1.0)
    assert (found.median_ratio, found.verdict) == (pytest.approx(1.1), "within noise")


def test_faster_one_way_is_slower_the_other(paced: Callable[..., RunRecord]) -> None:
    slow, fast = paced((10,) * 3, (2,) * 3), paced((5,) * 3, (1,) * 3)
    assert compare_runs(slow, fast, Rules()).regressed == ()
    assert len(compare_runs(fast, slow, Rules()).regressed) == 5


def test_a_single_round_is_drawn_by_its_requests(make_record: MakeRecord, make_sample: MakeSample) -> None:
    record = make_record(samples=tuple(make_sample(stream=stream) for stream in range(2)))
    found = by_metric(compare_runs(record, record, Rules()))
    assert found["TTFT"].interval is not None
    assert found["generated tokens/s"].interval is None


def test_a_metric_that_one_run_lacks_is_named(make_record: MakeRecord) -> None:
    uncounted = tuple(dataclasses.replace(s, event_tokens=(None,) * 16) for s in make_record().samples)
    found = compare_runs(make_record(), make_record(samples=uncounted), Rules())
    assert found.missing == ("ITL",)


@pytest.mark.parametrize("threshold", [-1.0, float("nan"), float("inf")])
def test_a_threshold_that_is_none_is_refused(make_record: MakeRecord, threshold: float) -> None:
    with pytest.raises(UsageError, match="--threshold"):
        compare_runs(make_record(), make_record(), Rules(threshold_percent=threshold))


# --- the interval


def test_the_interval_is_that_of_a_bootstrap_written_out() -> None:
    random = numpy.random.default_rng(5)
    sizes = (3, 1, 4, 2, 5, 3)
    first, second = ([random.lognormal(0, 0.3, size).tolist() for size in sizes] for _ in range(2))
    found = ratio_of_medians(first, second, seed=11)
    again = numpy.random.default_rng(11)
    drawn = [again.integers(0, 6, size=(bootstrap.RESAMPLES, 6)) for _ in range(2)]
    ratios = [
        numpy.median(numpy.concatenate([second[i] for i in there]))
        / numpy.median(numpy.concatenate([first[i] for i in here]))
        for here, there in zip(*drawn, strict=True)
    ]
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(numpy.quantile(ratios, (0.025, 0.975))))


def test_the_interval_of_a_seed_is_always_the_same() -> None:
    first, second = [[1.0], [2.0], [4.0]], [[2.0], [3.0], [9.0]]
    assert ratio_of_medians(first, second) == ratio_of_medians(first, second)
    assert ratio_of_medians(first, second[:1]) is None


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = numpy.random.default_rng(3)
    hits = 0
    for _ in range(40):
        first, second = random.normal(10, 1, 30), random.normal(12, 1, 30)
        found = ratio_of_medians(first.reshape(-1, 1).tolist(), second.reshape(-1, 1).tolist())
        hits += found is not None and found.holds(1.2)
    assert hits >= 33  # 95 % of 40 are 38; fewer than 33 come once in a thousand


# --- what is refused


def changed(make_record: MakeRecord, axis: str) -> RunRecord:
    record = make_record()
    assert record.pack is not None and record.backend is not None
    gb10 = load_contract("qwen3-4b-base-bf16-gb10")
    changes: dict[str, dict[str, Any]] = {
        "contract": {"contract": gb10, "contract_sha256": contract_sha256(gb10)},
        "profile": {"profile": dataclasses.replace(record.profile, prompt_tokens=9)},
        "machine": {"host_facts": {"cpu": {"model": "Grace", "usable": 20}}},
        "backend": {"backend": dataclasses.replace(record.backend, options=("split-k 4",))},
        "weights": {"pack": dataclasses.replace(record.pack, weights="random")},
        "validity": {
            "status": "invalid",
            "throttled": ("GPU 0 hot",),
            "failure": Failure(kind="InvalidRunError", message="GPU 0 hot", exit_code=7),
        },
    }
    return make_record(**changes[axis])


@pytest.mark.parametrize("axis", AXES)
def test_what_makes_it_unfair_is_refused_with_both_values_and_the_flag(
    make_record: MakeRecord, axis: str
) -> None:
    said = {
        "contract": ("tiny-cpu", "qwen3-4b-base-bf16-gb10"),
        "profile": ("prompt_tokens 8", "prompt_tokens 9"),
        "machine": ("unknown", "Grace, 20 usable processors"),
        "backend": ("[]", "['split-k 4']"),
        "weights": ("demo", "random"),
        "validity": ("ok", "GPU 0 hot"),
    }[axis]
    other = changed(make_record, axis)
    with pytest.raises(InvalidRunError) as refused:
        compare_runs(make_record(), other, Rules())
    for words in (*said, f"--across {axis}"):
        assert words in str(refused.value)
    found = compare_runs(make_record(), other, Rules(across=axes_named(axis)))
    assert said[1] in found.differences[0].second


def test_a_refusal_names_every_axis_and_the_flag_for_all_of_them(make_record: MakeRecord) -> None:
    other = dataclasses.replace(changed(make_record, "profile"), host="elsewhere")
    with pytest.raises(InvalidRunError, match=r"profile: .*; machine: .*--across weights,profile,machine$"):
        check_comparable(make_record(), other, axes_named("weights"))


def test_how_often_it_was_asked_and_which_code_ran_are_said_and_allowed(make_record: MakeRecord) -> None:
    record = make_record()
    assert record.pack is not None
    other = make_record(
        release=dataclasses.replace(record.release, git_sha="fedcba98", dirty=True, diff_sha256="77" * 32),
        pack=dataclasses.replace(record.pack, lock="d0" * 32),
        profile=dataclasses.replace(record.profile, requests=9),
    )
    told = {d.what: d.second for d in check_comparable(record, other)}
    assert told == {
        "code": "fedcba98, dirty (diff 777777777777)",
        "pack LOCK": "d0" * 6,
        "measured rounds": "9",
    }


def test_two_runs_that_do_not_count_are_no_more_comparable_than_one(make_record: MakeRecord) -> None:
    bad = changed(make_record, "validity")
    with pytest.raises(InvalidRunError, match="do not count"):
        compare_runs(bad, bad, Rules())


def test_runs_with_no_metric_in_common_are_refused(make_record: MakeRecord) -> None:
    with pytest.raises(InvalidRunError, match="no metric that both have"):
        compare_runs(make_record(samples=()), make_record(), Rules())


def test_an_axis_that_is_none_is_named() -> None:
    assert axes_named(None) == () and axes_named(" profile, machine ") == ("profile", "machine")
    with pytest.raises(UsageError, match="--across 'color': expected some of contract, profile"):
        axes_named("color")
