"""The in-process document in a run: taken when it is of the same run, refused by name when it is not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lean.bench.__main__ import _shareable, main
from lean.bench.in_process_file import read_in_process, why_stale
from lean.bench.metrics import run_metrics
from lean.bench.record import RunRecord, dump_run, read_run
from lean.bench.report import render_report
from lean.bench.results import list_runs
from lean.bench.shown_run import metric_rows, run_facts, show_run
from lean.cli import run_program
from lean.contracts import load_contract, to_data
from lean.errors import ContractError
from lean.in_process import InProcess, ReadBandwidth

MakeRecord = Callable[..., RunRecord]
MakeInProcess = Callable[..., InProcess]
RESULTS = Path(__file__).resolve().parents[3] / "results"


def written(folder: Path, found: InProcess, **changes: Any) -> Path:
    file = folder / "in_process.json"
    file.write_text(json.dumps(to_data(found) | changes))
    return file


def read(file: Path, record: RunRecord) -> InProcess:
    assert record.pack is not None and record.backend is not None
    return read_in_process(
        file,
        contract=record.contract,
        profile=record.profile,
        pack=record.pack,
        backend=record.backend,
        slots=2,
        split_k=None,
        release=dataclasses.replace(record.release, id="r"),
        host="0123456789ab",
    )


def test_a_document_of_the_same_run_is_taken_however_many_rounds_it_ran(
    tmp_path: Path, make_record: MakeRecord, make_in_process: MakeInProcess
) -> None:
    record, found = make_record(), make_in_process()
    assert read(written(tmp_path, found), record) == found
    more = dataclasses.replace(record.profile, requests=90)
    assert read(written(tmp_path, found), dataclasses.replace(record, profile=more)) == found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contract": "other"}, "measured in process with contract other, this run has tiny-cpu"),
        ({"lock": "d1" * 32}, "measured in process with pack d1d1d1d1"),
        ({"release": "older"}, "measured in process with release older, this run has r"),
        ({"release": None}, "measured in process with release None, this run has r"),
        ({"host": "ba9876543210"}, "measured in process with host ba9876543210, this run has 0123456789ab"),
        (
            {
                "runner": {
                    "name": "torch",
                    "device": "cpu",
                    "compute_dtype": "float32",
                    "slots": 2,
                    "split_k": 4,
                }
            },
            "measured in process with split-K 4, this run has None",
        ),
        ({"schema": "in-process/v1"}, "schema: expected 'in-process/v2', got 'in-process/v1'"),
        ({"step_ms": 0.0}, "step_ms: expected a positive number, got 0.0"),
        ({"kernels": 3}, "kernels: expected a list, got 3"),
        ({"surprise": 1}, "surprise: unknown key"),
    ],
)
def test_one_of_another_run_or_of_no_sound_form_is_refused_by_name(
    tmp_path: Path,
    make_record: MakeRecord,
    make_in_process: MakeInProcess,
    changes: dict[str, Any],
    words: str,
) -> None:
    file = written(tmp_path, make_in_process(), **changes)
    with pytest.raises(ContractError) as caught:
        read(file, make_record())
    assert words in str(caught.value) and str(file) in str(caught.value)


def test_another_profile_or_runner_is_refused_by_name(
    tmp_path: Path, make_record: MakeRecord, make_in_process: MakeInProcess
) -> None:
    record, found = make_record(), make_in_process()
    other = dataclasses.replace(found.profile, id="decode_9_9")
    same_name = dataclasses.replace(found.profile, decode_tokens=17)
    for changed, words in (
        ({"profile": other}, "with profile decode_9_9, this run has decode_8_16"),
        ({"profile": same_name}, "decode_tokens=17"),
        ({"runner": found.runner | {"name": "cuda"}}, "with runner cuda, this run has torch"),
        ({"runner": found.runner | {"device": "GPU 7"}}, "with device GPU 7, this run has cpu"),
        ({"runner": found.runner | {"slots": 8}}, "with slots 8, this run has 2"),
        (
            {"runner": found.runner | {"compute_dtype": "bfloat16"}},
            "with compute dtype bfloat16, this run has",
        ),
    ):
        with pytest.raises(ContractError, match=words):
            read(written(tmp_path, dataclasses.replace(found, **changed)), record)


@pytest.mark.parametrize(
    ("finished", "started", "words"),
    [
        ("2026-01-02T10:00:00.000+00:00", "2026-01-02T10:00:09.000+00:00", None),
        (
            "2026-01-02T10:00:00.000+00:00",
            "2026-01-02T10:10:01.000+00:00",
            "measured 601 s before the service",
        ),
        ("2026-01-02T10:00:00.000+00:00", "2026-01-02T09:59:58.000+00:00", "measured 2 s after the service"),
        (None, "2026-01-02T10:00:00.000+00:00", "does not say when it was measured"),
        ("2026-01-02T10:00:00", "2026-01-02T10:00:09.000+00:00", "does not say when it was measured"),
        ("2026-01-02T10:00:00.000+00:00", None, "does not say when"),
        ("2026-01-02T10:00:00.000+00:00", "this morning", "does not say when"),
    ],
)
def test_one_that_was_not_measured_right_before_the_service_started_is_stale(
    make_in_process: MakeInProcess, finished: str | None, started: str | None, words: str | None
) -> None:
    why = why_stale(make_in_process(finished_utc=finished), {"started_utc": started})
    assert (why is None) == (words is None) and (words or "") in (why or "")


def test_a_missing_file_and_torn_json_are_refused_by_name(
    tmp_path: Path, make_record: MakeRecord, make_in_process: MakeInProcess
) -> None:
    with pytest.raises(ContractError, match=r"none\.json: cannot be read: No such file"):
        read(tmp_path / "none.json", make_record())
    file = written(tmp_path, make_in_process())
    file.write_text(file.read_text()[:-40])
    with pytest.raises(ContractError, match=r"in_process\.json: not the JSON of a record: not JSON"):
        read(file, make_record())


def test_a_record_keeps_it_and_tells_it_everywhere(
    tmp_path: Path, make_record: MakeRecord, make_in_process: MakeInProcess
) -> None:
    record = make_record(in_process=make_in_process())
    path = tmp_path / record.place
    path.mkdir(parents=True)
    (path / "run.json").write_text(dump_run(record))
    assert read_run(path) == record
    assert list_runs(tmp_path).rows[0].in_process_tokens_per_s == 1000.0
    rate = record.metrics.tokens_per_s
    assert rate is not None
    told = dict(show_run(path).facts)["in process"]
    assert told == f"1000 tokens/s, HTTP reaches {rate.median / 1000:.3f} of it"


def test_the_report_shows_the_ratio_the_bandwidth_and_every_kernel_s_share(
    make_record: MakeRecord, make_in_process: MakeInProcess
) -> None:
    page = render_report(make_record(in_process=make_in_process()))
    assert "## HTTP and in process" in page
    assert "| time to first token (ms) | 10.00 | 8.000 | 1.250 |" in page
    assert "8.590 GB of the weights a pass, reached **3000 GB/s** (median of 2 samples of 12 passes)." in page
    assert "| gate_up.one (swept) | 4 | 3.000 | 2.000 | 1500 | 50.0% |" in page
    assert "| greedy.rows | 1 | 0.000 | 2.000 |  |  |" in page


def test_the_report_says_why_there_is_none_and_old_records_have_no_such_section(
    make_record: MakeRecord, make_in_process: MakeInProcess
) -> None:
    page = render_report(make_record(no_in_process="the service was | already running"))
    assert "Not measured in process: the service was \\| already running." in page
    assert "in process" not in render_report(make_record())
    bare = make_in_process(read_bandwidth=None, kernels=None)
    page = render_report(make_record(in_process=bare))
    assert "## HTTP and in process" in page and "Reading alone" not in page
    small = ReadBandwidth(read_bytes=1 << 20, launches=1, replays=3, seconds=(1e-6,), gbs=1000.0)
    page = render_report(make_record(in_process=make_in_process(read_bandwidth=small)))
    assert "So little fits into a cache" in page


def test_the_share_of_bandwidth_says_which_bandwidth(
    make_record: MakeRecord, make_in_process: MakeInProcess
) -> None:
    contract = load_contract("qwen3-4b-base-bf16-h100")
    record = make_record(contract=contract)
    for measured, gbs, basis, words in (
        (None, 3350.0, "data sheet", "share of the data sheet's bandwidth"),
        (3000.0, 3000.0, "measured", "share of the measured read bandwidth"),
    ):
        metrics = run_metrics(contract, record.profile, record.samples, measured)
        assert (metrics.bandwidth_gbs, metrics.bandwidth_basis) == (gbs, basis)
        assert metrics.bytes_per_s is not None and metrics.bandwidth_share is not None
        assert metrics.bandwidth_share.median == pytest.approx(metrics.bytes_per_s.median / gbs / 1e9)
        names = [row.name for row in metric_rows(dataclasses.replace(record, metrics=metrics))]
        assert words in names
    nowhere = run_metrics(load_contract("tiny-cpu"), record.profile, record.samples)
    assert (nowhere.bandwidth_gbs, nowhere.bandwidth_basis) == (None, None)


def test_every_committed_record_of_version_1_still_reads_and_says_nothing_of_it() -> None:
    found = list_runs(RESULTS)
    assert not found.broken
    old = [record for row in found.rows if (record := read_run(Path(row.path))).schema_version == 1]
    assert old
    for record in old:
        assert (record.in_process, record.no_in_process) == (None, None)
        assert record.metrics.bandwidth_basis is None
        assert "in process" not in dict(run_facts(record))
        assert json.loads(dump_run(record))["schema_version"] == 1


def test_a_home_in_a_reason_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    for word, shared in (
        ("/home/ada/packs/p", "~/packs/p"),
        ("--no-in-process=it failed: /home/ada/lean/x: torn", "--no-in-process=it failed: ~/lean/x: torn"),
        ("/mnt/home/ada/x", "/mnt/home/ada/x"),
    ):
        assert _shareable(word) == shared


def test_a_run_takes_a_document_or_a_reason_and_not_both(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", "--in-process", "x", "--no-in-process", "y"]
    assert run_program(main, argv) == 1
    assert "not allowed with argument" in capsys.readouterr().out
