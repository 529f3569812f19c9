"""The file of step times: what goes in comes out, and what is missing shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.qwen3 import decode_program
from lean.contracts import load_contract
from lean.errors import IntegrityError, PreflightError
from lean.kernel_sizes import sizes_of
from lean.leanserve import region_times
from lean.leanserve.region_times import REGIONS, HostClock, RegionLog, StepTimes, region_of
from lean.leanserve.step_reads import step_reads
from lean.regions.summary import read_regions, summarize

STEP = StepTimes(
    bucket=1, choose="greedy", after="start", wait_s=0.0, work_s=tuple(0.5 + i for i in range(len(REGIONS)))
)


def write(path: Path, *steps: StepTimes) -> Path:
    log = RegionLog(path, {"contract": "tiny-cpu"})
    for step in steps:
        log.write(step)
    log.close()
    return path


def test_every_kernel_of_every_step_is_in_a_region() -> None:
    sizes = sizes_of(load_contract("tiny-cpu"))
    programs = [
        decode_program(sizes, bucket, choose, split_k)
        for bucket in (1, 2, 4, 8)
        for choose in ("greedy", "sampled")
        for split_k in (None, 1, 8)
    ]
    found = [region_of(launch.kernel) for program in programs for launch in program]
    assert set(found) == set(REGIONS)
    assert region_of("split4.rows") == region_of("sum8.one") == region_of("output.one") == "output"


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    steps = (STEP, replace(STEP, after="step", wait_s=0.25), replace(STEP, bucket=8, after="prompt"))
    times = read_regions(write(tmp_path / "new" / "steps.jsonl", *steps))
    assert times.steps == steps
    assert times.about == {"contract": "tiny-cpu"}
    assert read_regions(write(tmp_path / "none.jsonl")).steps == ()


def test_nothing_is_written_over_and_nothing_behind_the_end(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    log = RegionLog(path, {})
    log.write(STEP)
    log.close()
    log.write(STEP)  # a runner that outlives its log
    log.close()
    assert len(read_regions(path).steps) == 1
    with pytest.raises(PreflightError, match=r"steps\.jsonl: cannot be made: File exists"):
        RegionLog(path, {})


@pytest.mark.parametrize("lost", [0, 1, 2, 3, -1])
def test_a_file_with_any_line_lost_is_refused(tmp_path: Path, lost: int) -> None:
    path = write(tmp_path / "steps.jsonl", STEP, STEP, STEP)
    lines = path.read_text().splitlines(keepends=True)
    del lines[lost]
    path.write_text("".join(lines))
    with pytest.raises(IntegrityError, match=r"steps\.jsonl: "):
        read_regions(path)


@pytest.mark.parametrize("cut", [2, 40, 400])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "steps.jsonl", STEP, STEP, STEP)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(IntegrityError):
        read_regions(path)


def test_another_taxonomy_is_not_mixed_with_ours(tmp_path: Path) -> None:
    path = write(tmp_path / "steps.jsonl", STEP)
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first.replace("decode-step/v1", "decode-step/v2"), *rest]))
    with pytest.raises(IntegrityError, match="decode-step/v2; this release reads step-times/v1"):
        read_regions(path)
    assert json.loads(first)["regions"] == list(REGIONS)


def test_waits_are_summed_up_apart_from_work() -> None:
    steps = [STEP, *(replace(STEP, after="step", wait_s=w) for w in (1.0, 2.0, 9.0))]
    steps.append(replace(STEP, after="prompt", wait_s=50.0))
    found = summarize(steps)
    assert found.waits["step"].median_s == 2.0 and found.waits["step"].count == 3
    assert found.waits["prompt"].median_s == 50.0
    assert found.steps.count == 5 and found.steps.median_s == sum(STEP.work_s)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.work["embedding"].p99_s == 0.5
    nothing = summarize([])
    assert nothing.steps.count == 0 and nothing.steps.median_s is None


def test_the_host_s_clock_tells_work_from_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 100.0, 101.0, 103.0, 110.0, 111.0, 130.0, 131.0])
    monkeypatch.setattr(region_times, "perf_counter", lambda: next(now))
    log = RegionLog(tmp_path / "steps.jsonl", {})
    clock = HostClock(log)  # at 0
    clock.prompt_ran()  # before the first step: nothing to be behind of
    mark = clock.begin()  # at 100
    mark("qkv")  # at 101
    clock.end(1, "greedy")  # at 103
    clock.begin()  # at 110
    clock.end(1, "sampled")  # at 111
    clock.prompt_ran()
    clock.begin()  # at 130
    clock.end(2, "greedy")  # at 131
    log.close()
    first, second, third = read_regions(log.path).steps
    assert (first.after, first.wait_s) == ("start", 0.0)
    assert dict(zip(REGIONS, first.work_s, strict=True)) == dict.fromkeys(REGIONS, 0.0) | {
        "qkv": 1.0,
        "choose": 2.0,
    }
    assert (second.after, second.wait_s, second.choose) == ("step", 7.0, "sampled")
    assert (third.after, third.wait_s, third.bucket) == ("prompt", 19.0, 2)


def test_a_full_disk_ends_the_timing_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], mount_small_disk: Callable[[Path, int], Path]
) -> None:
    log = RegionLog(mount_small_disk(tmp_path / "small", 64) / "steps.jsonl", {})
    for _ in range(2000):
        log.write(STEP)
    log.close()
    assert capfd.readouterr().err.count("No space left on device; no further steps are timed") == 1
    with pytest.raises(IntegrityError):
        read_regions(log.path)


def test_a_log_that_was_given_up_has_no_end(tmp_path: Path) -> None:
    log = RegionLog(tmp_path / "steps.jsonl", {})
    log.write(STEP)
    log.abandon()
    log.write(STEP)
    log.close()
    with pytest.raises(IntegrityError, match="rows are missing"):
        read_regions(log.path)


def test_the_steps_of_a_split_projection_read_the_same_bytes() -> None:
    sizes = sizes_of(load_contract("tiny-cpu"))
    whole, split = (step_reads(sizes, batch=1, positions=64, split_k=k) for k in (None, 4))
    assert {one.kernel for one in split} - {one.kernel for one in whole} == {"split4.one", "sum4.one"}
    assert sum(one.read_bytes for one in split) == sum(one.read_bytes for one in whole)
