"""The projection for a chip that nobody measured, from the committed runs of one that was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lean.contracts import load_contract
from lean.errors import IntegrityError
from lean.leanserve.projection import ACHIEVABLE_READ_GBS, project

RESULTS = Path(__file__).resolve().parents[2] / "results"
GB10, H100 = load_contract("qwen3-4b-base-bf16-gb10"), load_contract("qwen3-4b-base-bf16-h100")


def run(results: Path, *, started: str, rate: float, target: str = "sm_90", status: str = "ok") -> None:
    folder = results / "v1" / "box" / "decode_64_256" / started
    folder.mkdir(parents=True)
    record = {
        "contract": {"target": target},
        "status": status,
        "backend": {"name": "cuda"},
        "metrics": {"bytes_per_s": {"median": rate}},
        "started_utc": started,
    }
    (folder / "run.json").write_text(json.dumps(record))


def test_the_committed_runs_project_gb10_and_say_that_it_is_no_result() -> None:
    projected = project(GB10, RESULTS)
    assert projected is not None
    assert projected.label == "projection, not measured"
    assert projected.target == "sm_121" and projected.achievable_read_gbs == 231.0
    # 4,022,468,096 parameters in BF16, and 192 positions of a 147,456-byte cache row
    assert projected.read_bytes_per_token == 2 * 4_022_468_096 + 192 * 147_456
    assert projected.tokens_per_second == pytest.approx(
        231e9 * projected.share / projected.read_bytes_per_token
    )
    assert (RESULTS / projected.basis / "run.json").is_file()


def test_a_chip_that_was_measured_is_not_projected() -> None:
    assert project(H100, RESULTS) is None


def test_the_newest_sound_run_counts(tmp_path: Path) -> None:
    run(tmp_path, started="2026-01-01", rate=ACHIEVABLE_READ_GBS["sm_90"] * 1e9)
    run(tmp_path, started="2026-01-02", rate=ACHIEVABLE_READ_GBS["sm_90"] * 0.5e9)
    run(tmp_path, started="2026-01-03", rate=1.0, status="failed")
    projected = project(GB10, tmp_path)
    assert projected is not None and projected.share == pytest.approx(0.5)
    assert projected.basis.endswith("2026-01-02")


def test_without_a_run_there_is_no_projection(tmp_path: Path) -> None:
    assert project(GB10, tmp_path) is None


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    run(tmp_path, started="2026-01-01", rate=1e12)
    (tmp_path / "v1/box/decode_64_256/2026-01-01/run.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"2026-01-01/run\.json"):
        project(GB10, tmp_path)
