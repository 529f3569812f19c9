"""Our runs against another system's: the gate over both, the ratios by hand, and the page."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lean.bench.baseline_comparison import BaselineComparison, Step, compare_with_baseline
from lean.bench.baseline_gate import Ran, ran_of, read_ran
from lean.bench.baseline_page import comparison_page, write_comparison
from lean.bench.metrics import run_metrics
from lean.bench.record import Backend, Baseline, RunRecord, dump_run
from lean.bench.sample import PromptRecord, Sample
from lean.bench.sums import write_sums
from lean.errors import IntegrityError, PreflightError, UsageError

MakeRecord = Callable[..., RunRecord]
BASELINE = Baseline(
    system="llama.cpp",
    version="0.3.36",
    as_run="llama-server built for this machine",
    dialect="llama.cpp",
    packages=("gguf 0.19.0",),
    command=("llama-server", "--port", "1"),
    weights_sha256="5a" * 32,
    source_id="leanstack/demo-5m",
    source_revision=None,
    slots=2,
    threads=None,
    first_token_seconds=0.5,
)
PROMPTS = (PromptRecord(phase="measured", stream=0, round=0, tokens=8, ids_sha256="aa", text="the lake"),)


@pytest.fixture
def run(make_record: MakeRecord, make_sample: Callable[..., Sample]) -> Callable[..., Ran]:
    """A run whose every round takes `seconds` for its 32 tokens; of the baseline when asked."""

    def make(seconds: tuple[float, ...], other: bool = False, **changes: Any) -> Ran:
        samples = tuple(
            make_sample(
                stream=stream,
                round=turn,
                sent_ns=turn * 10**10,
                event_ns=tuple(turn * 10**10 + round(taken * 1e9 * (i + 1) / 16) for i in range(16)),
            )
            for turn, taken in enumerate(seconds)
            for stream in range(2)
        )
        record = make_record()
        pack = None if other else dataclasses.replace(record.pack, source_sha256="5a" * 32)  # type: ignore[type-var]
        parts = {
            "samples": samples,
            "metrics": run_metrics(record.contract, record.profile, samples),
            "pack": pack,
            "peer": BASELINE if other else None,
            "prompts": PROMPTS,
            "prompt_form": "text",
            "host_facts": {"host": "0123456789ab"},
            "service": {"runner": {"slots": 2}},
        }
        changed = dataclasses.replace(record, **(parts | changes))
        return ran_of(changed, hashlib.sha256(dump_run(changed).encode()).hexdigest())

    return make


def judged(ours: list[Ran], baseline: list[Ran]) -> BaselineComparison:
    return compare_with_baseline("20260101T000000Z-llama.cpp", ours, baseline, ())


def broken(found: BaselineComparison) -> list[str]:
    return [check.rule for check in found.checks if not check.passed]


def test_medians_meet_medians_bests_meet_bests_and_the_claim_is_our_median_over_their_best(
    run: Callable[..., Ran],
) -> None:
    ours = [run((0.10,) * 3), run((0.08,) * 3), run((0.16,) * 3)]  # 320, 400 and 200 tokens/s
    baseline = [run((0.20,) * 3, True), run((0.25,) * 3, True), run((0.16,) * 3, True)]  # 160, 128, 200
    found = judged(ours, baseline)
    assert found.status == "ok" and broken(found) == []
    assert (found.ours.plain, found.ours.median, found.ours.best) == pytest.approx((320, 320, 400))
    assert (found.peer.plain, found.peer.median, found.peer.best) == pytest.approx((160, 160, 200))
    assert found.ratios is not None
    assert found.ratios.plain == pytest.approx(2.0) and found.ratios.median == pytest.approx(2.0)
    assert found.ratios.best == pytest.approx(2.0) and found.ratios.claim == pytest.approx(1.6)
    assert found.ratios.claim_interval is not None
    assert found.ratios.claim_interval.low <= 1.6 <= found.ratios.claim_interval.high
    assert found.ratios.per_token == pytest.approx(0.5)


def test_a_comparison_is_official_only_when_every_run_of_ours_is(run: Callable[..., Ran]) -> None:
    plain = judged([run((0.1,) * 3)], [run((0.2,) * 3, True)])
    once = judged([run((0.1,) * 3, label="fixed-contract", label_reasons=())], [run((0.2,) * 3, True)])
    assert once.label_reasons == ("a best is of 3 runs or more",)
    assert plain.label == "exploratory" and "contract tiny-cpu is not official" in plain.label_reasons
    fixed: dict[str, Any] = {"label": "fixed-contract", "label_reasons": ()}
    three = (
        [run((t,) * 3, **fixed) for t in (0.1, 0.101, 0.102)],
        [run((t,) * 3, True) for t in (0.2, 0.201, 0.202)],
    )
    official = judged(*three)
    assert official.label == "fixed-contract" and "reaches the bar of 1.30" in comparison_page(official)
    assert "It is no claim" in comparison_page(plain)


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("every run is fair in itself, and none was throttled", {"status": "invalid"}),
        ("the same machine", {"host_facts": {"host": "another"}}),
        ("the same machine", {"host_facts": {}}),
        ("as many streams at once", {"peer": dataclasses.replace(BASELINE, slots=8)}),
        (
            "the same kind of device",
            {"backend": Backend(name="p", device="cuda", compute_dtype="float32", operator_coverage=None)},
        ),
        ("prompts in the same form", {"prompt_form": "ids"}),
        ("the same prompts, token by token", {"prompts": ()}),
        ("the same weight files", {"peer": dataclasses.replace(BASELINE, weights_sha256="00" * 32)}),
    ],
)
def test_what_was_not_the_same_for_both_makes_it_invalid_and_gives_no_ratio(
    run: Callable[..., Ran], rule: str, changes: dict[str, Any]
) -> None:
    found = judged([run((0.1,) * 3)], [run((0.2,) * 3, True, **changes)])
    assert found.status == "invalid" and found.ratios is None and rule in broken(found)
    assert found.label == "exploratory" and "the fairness gate was not passed" in found.label_reasons
    assert "Does not count" in comparison_page(found) and rule in comparison_page(found)


def test_fewer_runs_of_one_side_are_unfair_since_a_best_of_more_is_better(run: Callable[..., Ran]) -> None:
    found = judged([run((0.1,) * 3), run((0.1,) * 3)], [run((0.2,) * 3, True)])
    assert broken(found) == ["as many different runs of ours as of the peer's"]
    own = run((0.1,) * 3)
    again = judged([own, own], [run((0.2,) * 3, True), run((0.21,) * 3, True)])
    assert broken(again) == ["as many different runs of ours as of the peer's"]


def test_a_figure_that_does_not_follow_from_the_samples_is_caught(run: Callable[..., Ran]) -> None:
    baseline = run((0.2,) * 3, True)
    rate = baseline.record.metrics.tokens_per_s
    assert rate is not None
    slower = dataclasses.replace(
        baseline.record.metrics, tokens_per_s=dataclasses.replace(rate, median=rate.median / 10)
    )
    edited = dataclasses.replace(baseline, record=dataclasses.replace(baseline.record, metrics=slower))
    found = judged([run((0.1,) * 3)], [edited])
    assert broken(found) == ["every figure and verdict follows from its run's samples"]


def test_settings_that_are_no_unfairness_are_no_claim_either(run: Callable[..., Ran]) -> None:
    threads = dataclasses.replace(BASELINE, threads=1)
    fixed: dict[str, Any] = {"label": "fixed-contract", "label_reasons": ()}
    ours = [run((t,) * 3, **fixed) for t in (0.1, 0.11, 0.12)]
    found = judged(ours, [run((t,) * 3, True, peer=threads) for t in (0.2, 0.21, 0.22)])
    assert found.label_reasons == ("the peer's threads were set",) and found.ratios is not None


def test_runs_of_the_wrong_side_or_none_at_all_are_refused(run: Callable[..., Ran]) -> None:
    own, other = run((0.1,) * 3), run((0.2,) * 3, True)
    for ours, baseline in (([other], [other]), ([own], [own]), ([], [other]), ([own], [])):
        with pytest.raises(UsageError):
            judged(ours, baseline)


def test_the_folder_says_all_and_is_never_rewritten(run: Callable[..., Ran], tmp_path: Path) -> None:
    ours, baseline = [run((0.1, 0.11, 0.12))], [run((0.2, 0.21, 0.22), True)]
    steps = (Step(at_utc="2026-01-01T00:00:00+00:00", what="baseline up", detail="a | b"),)
    found = compare_with_baseline("20260101T000000Z-llama.cpp", ours, baseline, steps)
    folder = tmp_path / "results" / "one"
    write_comparison(found, folder)
    assert sorted(file.name for file in folder.iterdir()) == ["report.md", "versus.json", "versus.png"]
    page = (folder / "report.md").read_text()
    assert ours[0].sha256 in page and baseline[0].sha256 in page and "a \\| b" in page
    assert "llama.cpp 0.3.36" in page and "exploratory" in page
    assert json.loads((folder / "versus.json").read_text())["schema"] == "versus/v1"
    with Image.open(folder / "versus.png") as picture:
        assert picture.width > 800
    with pytest.raises(PreflightError, match="never rewritten"):
        write_comparison(found, folder)


def test_the_hash_is_of_the_raw_payload_as_it_lies_on_disk(run: Callable[..., Ran], tmp_path: Path) -> None:
    ran = run((0.1,) * 3)
    (tmp_path / "run.json").write_text(dump_run(ran.record))
    assert read_ran(tmp_path) == ran
    write_sums(tmp_path, ("run.json",))
    (tmp_path / "run.json").write_text(dump_run(ran.record) + " ")
    with pytest.raises(IntegrityError, match=r"run\.json"):
        read_ran(tmp_path)
