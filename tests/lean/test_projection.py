"""The projection for a chip that nobody measured, from the committed runs of one that was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lean.contracts import encoded_contract, load_contract
from lean.errors import IntegrityError
from lean.leanserve.projection import ACHIEVABLE_READ_GBS, project

RESULTS = Path(__file__).resolve().parents[2] / "results"
GB10, H100 = load_contract("qwen3-4b-base-bf16-gb10"), load_contract("qwen3-4b-base-bf16-h100")


def run(
    results: Path,
    *,
    started: str,
    rate: float,
    target: str = "sm_90",
    encoding: str = "bf16",
    status: str = "ok",
    in_process: dict[str, Any] | None = None,
    options: tuple[str, ...] = (),
    load: dict[str, Any] | None = None,
) -> None:
    folder = results / "v1" / "box" / "decode_64_256" / started
    folder.mkdir(parents=True)
    record = {
        "contract": {"target": target, "encoding": encoding},
        "status": status,
        "backend": {"name": "cuda"} | ({"options": list(options)} if options else {}),
        "metrics": {"bytes_per_s": {"median": rate}},
        "started_utc": started,
        "in_process": in_process,
        "load": load,
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


def test_a_run_with_an_option_is_no_basis(tmp_path: Path) -> None:
    run(tmp_path, started="2026-01-01", rate=2e12)
    run(tmp_path, started="2026-01-02", rate=1e12, options=("split-K 8 of the output projection",))
    projected = project(GB10, tmp_path)
    assert projected is not None and projected.basis.endswith("2026-01-01")


def test_a_run_of_another_load_than_rounds_is_no_basis(tmp_path: Path) -> None:
    run(tmp_path, started="2026-01-01", rate=2e12)
    run(tmp_path, started="2026-01-02", rate=1e12, load={"offered": 3})
    projected = project(GB10, tmp_path)
    assert projected is not None and projected.basis.endswith("2026-01-01")


def test_the_newest_sound_run_counts(tmp_path: Path) -> None:
    run(tmp_path, started="2026-01-01", rate=ACHIEVABLE_READ_GBS["sm_90"] * 1e9)
    run(tmp_path, started="2026-01-02", rate=ACHIEVABLE_READ_GBS["sm_90"] * 0.5e9)
    run(tmp_path, started="2026-01-03", rate=1.0, status="failed")
    projected = project(GB10, tmp_path)
    assert projected is not None and projected.share == pytest.approx(0.5)
    assert projected.basis.endswith("2026-01-02")


def test_only_runs_of_the_contracts_encoding_count(tmp_path: Path) -> None:
    run(tmp_path, started="2026-01-01", rate=1e12)
    coded = encoded_contract(GB10, "nvfp4")
    assert project(coded, tmp_path) is None
    run(tmp_path, started="2026-01-02", rate=ACHIEVABLE_READ_GBS["sm_90"] * 0.5e9, encoding="nvfp4")
    projected = project(coded, tmp_path)
    assert projected is not None and projected.share == pytest.approx(0.5)
    assert projected.read_bytes_per_token < 0.32 * project_of_bf16(tmp_path)


def project_of_bf16(results: Path) -> int:
    projected = project(GB10, results)
    assert projected is not None
    return projected.read_bytes_per_token


def test_without_a_run_there_is_no_projection(tmp_path: Path) -> None:
    assert project(GB10, tmp_path) is None


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    run(tmp_path, started="2026-01-01", rate=1e12)
    (tmp_path / "v1/box/decode_64_256/2026-01-01/run.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"2026-01-01/run\.json"):
        project(GB10, tmp_path)


def inside(**changes: Any) -> dict[str, Any]:
    """A run's own figures: qkv and head at half of 3000 GB/s, all others at all of it, 1 ms beside them."""
    names = ("qkv", "attention", "output", "gate_up", "down", "head")
    kernels = [
        {"kernel": f"{name}.one", "share": 0.5 if name in ("qkv", "head") else 1.0, "step_s": 0.0004}
        for name in names
    ]
    kernels.append({"kernel": "greedy.rows", "share": None, "step_s": 0.0002})
    reading = {"gbs": 3000.0, "read_bytes": 8 << 30}
    return {"step_ms": 3.4, "read_bandwidth": reading, "kernels": kernels} | changes


def test_kernels_that_a_run_measured_are_projected_each_by_its_own_share(tmp_path: Path) -> None:
    run(tmp_path, started="2026-01-01", rate=2.4e12, in_process=inside())
    run(tmp_path, started="2026-01-02", rate=1.0e12)  # newer, and knows the whole step only
    projected = project(GB10, tmp_path)
    assert projected is not None and projected.basis.endswith("2026-01-01")
    assert projected.label == "projection, not measured"
    layers, head = 36 * 2 * 2560 * 6144, 2 * 2560 * 151936  # qkv of every layer, and the head
    qkv_norms = 36 * 2 * 2560 + 2 * 2560
    slow = layers + head + qkv_norms
    seconds = (projected.read_bytes_per_token + slow) / 231e9 + 0.001
    assert projected.token_ms == pytest.approx(1e3 * seconds)
    assert projected.share == pytest.approx(projected.read_bytes_per_token / 231e9 / seconds)
    assert (projected.measured_read_gbs, projected.other_ms) == (3000.0, pytest.approx(1.0))
    assert projected.kernel_shares["qkv.one"] == 0.5 and "greedy.rows" not in projected.kernel_shares


def test_a_run_s_own_bandwidth_stands_in_for_the_constant(tmp_path: Path) -> None:
    run(tmp_path, started="2026-01-01", rate=1.5e12, in_process=inside(kernels=None))
    projected = project(GB10, tmp_path)
    assert projected is not None and projected.share == pytest.approx(0.5)
    assert (projected.measured_read_gbs, projected.kernel_shares, projected.other_ms) == (3000.0, {}, 0.0)


def test_a_bandwidth_that_a_cache_may_have_given_does_not_count(tmp_path: Path) -> None:
    small = inside(read_bandwidth={"gbs": 9000.0, "read_bytes": 1 << 20})
    run(tmp_path, started="2026-01-01", rate=1.5e12, in_process=small)
    projected = project(GB10, tmp_path)
    assert projected is not None and projected.measured_read_gbs == ACHIEVABLE_READ_GBS["sm_90"]
    assert projected.kernel_shares == {}


@pytest.mark.parametrize(
    "broken",
    [
        {"read_bandwidth": {"gbs": 0.0, "read_bytes": 8 << 30}},
        {"read_bandwidth": {"gbs": "fast", "read_bytes": 8 << 30}},
        {"read_bandwidth": [1]},
        {"kernels": [{"kernel": "qkv.one", "share": -1.0, "step_s": 1.0}]},
        {"kernels": [{"kernel": "qkv.one"}]},
        {"step_ms": None},
        {"step_ms": 0.0},
        {"step_ms": True},
        {"step_ms": "3.4"},
        {"read_bandwidth": {"gbs": 1e300, "read_bytes": 8 << 30}},
        {"read_bandwidth": {"gbs": 3000.0, "read_bytes": True}},
        {"kernels": [{"kernel": "qkv.one", "share": 1e-320, "step_s": 1.0}]},
        {"kernels": [{"kernel": "qkv.one", "share": 0.5, "step_s": -1.0}]},
        {"kernels": [{"kernel": ["qkv.one"], "share": 0.5, "step_s": 1.0}]},
        {"kernels": [{"kernel": "qkv.one", "share": 0.5, "step_s": 1e-4}] * 2},
        {"kernels": {"qkv.one": 0.5}},
        {"kernels": [0.5]},
    ],
)
def test_a_run_whose_own_figures_are_none_is_named(tmp_path: Path, broken: dict[str, Any]) -> None:
    run(tmp_path, started="2026-01-01", rate=1e12, in_process=inside(**broken))
    with pytest.raises(IntegrityError, match=r"2026-01-01/run\.json"):
        project(GB10, tmp_path)


@pytest.mark.parametrize("rate", [0, -1.0, 1e-300, 1e300, True, None, "fast", [2e12]])
def test_a_run_whose_rate_no_machine_has_is_named(tmp_path: Path, rate: Any) -> None:
    run(tmp_path, started="2026-01-01", rate=rate)
    with pytest.raises(
        IntegrityError, match=r"2026-01-01/run\.json: no run record: median: expected a number"
    ):
        project(GB10, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"status": "ok"', '"status": "ok", "status": "ok"', "duplicate key 'status'"),
        ("1000000000000.0", "NaN", "NaN is not a JSON number"),
        ("1000000000000.0", "1e999", "too large"),
        ('{"name": "cuda"}', "null", "backend: expected dict, got None"),
        ('"sm_90"', "[]", "target: expected str, got"),
        ('"2026-01-01"', "7", "started_utc: expected str, got 7"),
    ],
)
def test_a_run_that_is_no_strict_json_of_the_right_types_is_named(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    run(tmp_path, started="2026-01-01", rate=1e12)
    file = tmp_path / "v1/box/decode_64_256/2026-01-01/run.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(IntegrityError) as caught:
        project(GB10, tmp_path)
    assert str(file) in str(caught.value) and words in str(caught.value)


def test_a_pipe_in_a_run_s_place_is_named_and_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "v1/box/decode_64_256/2026-01-01"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "run.json")
    with pytest.raises(IntegrityError, match=r"2026-01-01/run\.json: is a FIFO"):
        project(GB10, tmp_path)
