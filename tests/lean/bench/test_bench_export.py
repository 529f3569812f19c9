"""Runs as CSV, Markdown and JSON, read back by the readers of others."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from lean.bench.export import (
    METRIC_COLUMNS,
    Exported,
    export_runs,
    export_texts,
    format_named,
    write_texts,
)
from lean.bench.metrics import request_metrics
from lean.bench.record import RunRecord
from lean.bench.results import list_runs
from lean.bench.store import write_run
from lean.errors import UsageError

MakeRecord = Callable[..., RunRecord]

pytestmark = pytest.mark.usefixtures("no_plot")


def exported(root: Path, *, samples: bool = False) -> Exported:
    found = list_runs(root)
    return export_runs(found.rows, found.broken, samples=samples)


def test_every_metric_of_a_run_is_a_row_that_csv_reads_back(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record()
    write_run(record, tmp_path, [])
    (text,) = export_texts(exported(tmp_path), "csv").values()
    rows = {row["metric"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}
    assert tuple(rows["TTFT"]) == METRIC_COLUMNS
    known = [m for s in record.samples if s.phase == "measured" and (m := request_metrics(s)) is not None]
    times = [1e3 * m.e2e_s for m in known]
    row = rows["E2E latency"]
    assert (row["unit"], int(row["n"]), row["run"]) == ("ms", len(times), record.id)
    for name, value in (
        ("median", numpy.median(times)),
        ("mean", numpy.mean(times)),
        ("p95", numpy.percentile(times, 95)),
        ("p99", numpy.percentile(times, 99)),
    ):
        assert float(row[name]) == pytest.approx(value)
    assert float(row["std"]) == pytest.approx(numpy.std(times, ddof=1), abs=1e-9)


def test_samples_hold_every_arrival_of_every_request(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record()
    write_run(record, tmp_path, [])
    texts = export_texts(exported(tmp_path, samples=True), "csv")
    rows = list(csv.DictReader(io.StringIO(texts["samples.csv"], newline="")))
    assert len(rows) == len(record.samples)
    for row, sample in zip(rows, record.samples, strict=True):
        assert (row["phase"], int(row["round"]), int(row["sent_ns"])) == (
            sample.phase,
            sample.round,
            sample.sent_ns,
        )
        assert tuple(map(int, row["event_ns"].split(" "))) == sample.event_ns
        assert tuple(map(int, row["event_tokens"].split(" "))) == sample.event_tokens


def test_json_and_markdown_say_the_same(tmp_path: Path, make_record: MakeRecord) -> None:
    write_run(make_record(), tmp_path, [])
    found = exported(tmp_path, samples=True)
    document = json.loads(export_texts(found, "json")["runs.json"])
    assert [row["metric"] for row in document["metrics"]] == [row["metric"] for row in found.metrics]
    assert len(document["samples"]) == 8 and document["broken"] == []
    page = export_texts(found, "md")["runs.md"]
    tables = page.split("\n\n")
    assert len(tables[0].splitlines()) == len(found.metrics) + 2
    assert len({line.count("|") for line in tables[0].splitlines()}) == 1


def test_what_is_altered_is_named_and_the_others_are_exported(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    good = write_run(make_record(), tmp_path, [])
    bad = write_run(make_record(id="20260203T040507.000Z-0123456"), tmp_path, [])
    listed = list_runs(tmp_path)
    (bad / "samples.jsonl").write_text("{}\n")  # after it was listed
    found = export_runs(listed.rows, listed.broken, samples=False)
    assert {row["run"] for row in found.metrics} == {good.name}
    (broken,) = found.broken
    assert "samples.jsonl was changed" in broken.problem
    assert "samples.jsonl was changed" in export_texts(found, "md")["runs.md"]


def test_files_are_written_once(tmp_path: Path) -> None:
    both = {"metrics.csv": "a", "samples.csv": "b"}
    assert write_texts(both, tmp_path / "new") == (
        tmp_path / "new" / "metrics.csv",
        tmp_path / "new" / "samples.csv",
    )
    write_texts({"runs.md": "text"}, tmp_path / "runs.md")
    assert (tmp_path / "runs.md").read_text() == "text"
    for taken in ("new", "runs.md"):
        with pytest.raises(UsageError, match="exists; name a new one"):
            write_texts(both, tmp_path / taken)
    with pytest.raises(UsageError, match="cannot be written"):
        write_texts(both, tmp_path / "runs.md" / "below")


def test_a_format_that_is_none_is_named() -> None:
    assert format_named("md") == "md"
    with pytest.raises(UsageError, match="--format 'xml': expected one of csv, md, json"):
        format_named("xml")
