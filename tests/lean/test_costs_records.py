"""The many records that listings are timed with are whole ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from lean.bench.record import read_run
from lean.bench.results import list_runs
from lean.costs.records import make_records
from lean.errors import UsageError

RUN = Path(__file__).resolve().parents[2] / "results/v1/h100/decode_64_256/20261121T143341.808Z-6574008"


def test_each_is_the_record_it_is_made_of_under_a_name_and_a_time_of_its_own(tmp_path: Path) -> None:
    made = make_records(like=RUN, out=tmp_path / "results", count=4)
    found = list_runs(tmp_path / "results")
    assert found.broken == ()
    assert [row.sums for row in found.rows] == ["ok"] * 4
    names = [row.id for row in found.rows]
    assert (names[0], names[-1], len(set(names))) == (made.first, made.last, 4)
    records = [read_run(Path(row.path)) for row in found.rows]
    assert len({record.started_utc for record in records}) == 4
    assert all(record.samples == read_run(RUN).samples for record in records)
    files = [file for file in (tmp_path / "results").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) == made.bytes


def test_a_folder_is_never_written_twice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists; name a new folder"):
        make_records(like=RUN, out=tmp_path, count=2)
    with pytest.raises(UsageError, match="--count 1: expected at least 2"):
        make_records(like=RUN, out=tmp_path / "new", count=1)
