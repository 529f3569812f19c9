"""Figures of runs: what is drawn from which runs, and that the same runs give the same picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lean.bench import figures
from lean.bench.figures import MOST_RUNS, draw_figures, runs_like
from lean.bench.metrics import run_metrics
from lean.bench.record import RunRecord
from lean.bench.results import list_runs
from lean.bench.store import write_run
from lean.contracts import load_contract
from lean.errors import IntegrityError, UsageError

MakeRecord = Callable[..., RunRecord]


@pytest.fixture
def at_batch(make_record: MakeRecord) -> Callable[..., RunRecord]:
    """A run at this batch on a chip whose bandwidth is known, under a profile and a time of its own."""

    def make(batch: int, hour: int = 4, **changes: object) -> RunRecord:
        contract = load_contract("qwen3-4b-base-bf16-h100")
        base = make_record(contract=contract)
        profile = dataclasses.replace(base.profile, id=f"decode_8_16_b{batch}", batch=batch)
        given = {
            "contract": contract,
            "profile": profile,
            "id": f"20260203T{hour:02}0506.789Z-0123456",
            "started_utc": f"2026-02-03T{hour:02}:05:06.789+00:00",
            "metrics": run_metrics(contract, profile, base.samples),
        }
        return make_record(**(given | changes))

    return make


def test_three_figures_are_drawn_and_are_pictures(tmp_path: Path, at_batch: Callable[..., RunRecord]) -> None:
    runs = [at_batch(1), at_batch(2)]
    files = draw_figures(runs, runs, tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["token_times.png", "latency.png", "throughput.png"]
    for file in files:
        with Image.open(file) as picture:
            colours = picture.convert("RGB").getcolors(1 << 24)
        assert colours is not None and len(colours) > 50  # lines, marks and text
        assert max(colours)[1] == (255, 255, 255)  # on white


def test_the_same_runs_give_the_same_bytes(tmp_path: Path, at_batch: Callable[..., RunRecord]) -> None:
    runs = [at_batch(1), at_batch(4)]
    for name in ("one", "two"):
        draw_figures(runs[:1], runs, tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_what_a_run_does_not_hold_is_not_drawn(tmp_path: Path, make_record: MakeRecord) -> None:
    uncounted = tuple(dataclasses.replace(s, event_tokens=(None,) * 16) for s in make_record().samples)
    (file,) = draw_figures([make_record(samples=uncounted)], [], tmp_path)
    assert file.name == "latency.png"
    with pytest.raises(UsageError, match="no request in them was measured"):
        draw_figures([make_record(samples=())], [], tmp_path)
    with pytest.raises(UsageError, match=f"at most {MOST_RUNS}"):
        draw_figures([make_record()] * (MOST_RUNS + 1), [], tmp_path)


def test_the_bound_at_a_batch_is_bandwidth_over_the_bytes_of_a_step(
    at_batch: Callable[..., RunRecord],
) -> None:
    runs = {batch: at_batch(batch) for batch in (1, 8)}
    line = dict(figures._bound(runs, 3350.0))
    for batch, run in runs.items():
        assert run.metrics.bytes_per_step is not None
        assert line[float(batch)] == pytest.approx(batch * 3350e9 / run.metrics.bytes_per_step)
    middle = at_batch(2).metrics.bytes_per_step  # bytes grow linearly with the batch
    assert middle is not None
    nearest = min(line, key=lambda batch: abs(batch - 2))
    assert line[nearest] / nearest == pytest.approx(3350e9 / middle, rel=1e-3)


@pytest.mark.usefixtures("no_plot")
def test_throughput_takes_sound_runs_of_the_same_kind_only(
    tmp_path: Path, at_batch: Callable[..., RunRecord]
) -> None:
    first = at_batch(1)
    assert first.backend is not None
    for record in (
        first,
        at_batch(2),
        at_batch(4, status="invalid"),
        at_batch(8, backend=dataclasses.replace(first.backend, options=("split-k 4",))),
        at_batch(2, hour=5, host="elsewhere"),
        at_batch(1, hour=6, contract_sha256="00" * 32),
    ):
        write_run(record, tmp_path, [])
    found = runs_like(first, list_runs(tmp_path).rows)
    assert {(run.profile.batch, run.id[9:11]) for run in found} == {(1, "04"), (2, "04")}


@pytest.mark.usefixtures("no_plot")
def test_an_altered_run_is_never_drawn(tmp_path: Path, at_batch: Callable[..., RunRecord]) -> None:
    run = write_run(at_batch(1), tmp_path, [])
    rows = list_runs(tmp_path).rows
    (run / "log.txt").write_text("other words")
    with pytest.raises(IntegrityError, match=r"log\.txt was changed"):
        runs_like(at_batch(1), rows)
