"""Records: written whole or not at all, read strictly, listed, shown, and drawn again from run.json."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lean.bench import store
from lean.bench.host_state import HostState, parse_gpu_states
from lean.bench.record import Failure, Release, RunRecord, dump_run, read_run, run_id
from lean.bench.results import find_run, list_runs
from lean.bench.run_row import run_row
from lean.bench.sample import Sample
from lean.bench.shown_run import machine_line, metric_rows, show_run
from lean.bench.store import environment, write_pages, write_run
from lean.contracts import load_contract
from lean.errors import ContractError, PreflightError, UsageError

MakeRecord = Callable[..., RunRecord]
ROOT = Path(__file__).resolve().parents[3]
NAME = "20260203T040506.789Z-0123456"
H100 = "NVIDIA H100 80GB HBM3, 1980, 2619, 1980, 38, 124.36, 700.00, 700.00, 0x0000000000000001, 0, 0, 0, 0\n"


def full_record(make_record: MakeRecord) -> RunRecord:
    """A record with every optional part filled."""
    state = HostState(
        at_utc="2026-02-03T04:05:06.789+00:00",
        cpu_mhz_min=2000.0,
        cpu_mhz_mean=2100.5,
        cpus=2,
        load_1min=0.5,
        throttle_counts={"cpu0 core_throttle_count": 3},
        gpus=parse_gpu_states(H100),
        unread=("x",),
    )
    return make_record(
        contract=load_contract("qwen3-4b-base-bf16-h100"),
        state_before=state,
        state_after=state,
        notes=("power limit lowered",),
        status="invalid",
        throttled=("throttled: GPU 0 hot | <b>",),
        failure=Failure(kind="InvalidRunError", message="throttled", exit_code=7),
    )


def put(record: RunRecord, root: Path) -> Path:
    """Only the run.json of a record, in its place: what listing reads, without the cost of a plot."""
    path = root / record.place
    path.mkdir(parents=True)
    (path / "run.json").write_text(dump_run(record))
    return path


@pytest.mark.usefixtures("no_plot")
def test_a_record_survives_the_way_to_disk_and_back(tmp_path: Path, make_record: MakeRecord) -> None:
    for record in (make_record(), full_record(make_record)):
        path = write_run(record, tmp_path / record.status, ["a line"])
        assert read_run(path) == record
        assert read_run(path / "run.json") == record


def test_a_run_directory_has_its_place_and_its_files(tmp_path: Path, make_record: MakeRecord) -> None:
    path = write_run(make_record(), tmp_path, ["first", "second"])
    assert path == tmp_path / "v1" / "loopback" / "decode_8_16" / NAME
    names = {"run.json", "env.json", "samples.jsonl", "report.md", "plot.png", "log.txt", "SHA256SUMS"}
    assert {file.name for file in path.iterdir()} == names
    assert [entry.name for entry in path.parent.iterdir()] == [NAME]
    assert (path / "log.txt").read_text() == "first\nsecond\n"
    document = json.loads((path / "run.json").read_text())
    assert (document["schema"], document["schema_version"]) == ("run/v1", 3)
    lines = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    assert lines == document["samples"] and len(lines) == 8


def test_the_name_says_when_and_which_code() -> None:
    sha = "fedcba9876543210"
    clean = Release(id="r", git_sha=sha, dirty=False, diff_sha256=None)
    dirty = Release(id="r", git_sha=sha, dirty=True, diff_sha256="00")
    started = "2026-11-21T00:59:07.001+00:00"
    assert run_id(started, clean) == "20261121T005907.001Z-fedcba9"
    assert run_id(started, dirty) == "20261121T005907.001Z-fedcba9-dirty"


@pytest.mark.usefixtures("no_plot")
def test_a_record_is_never_rewritten(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record()
    path = write_run(record, tmp_path, ["first"])
    with pytest.raises(PreflightError, match="never rewritten"):
        write_run(dataclasses.replace(record, notes=("second",)), tmp_path, ["second"])
    assert (path / "log.txt").read_text() == "first\n"
    assert [entry.name for entry in path.parent.iterdir()] == [NAME]


def test_a_failure_while_writing_leaves_nothing(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_report", full)
    with pytest.raises(PreflightError, match="No space left on device"):
        write_run(make_record(), tmp_path, [])
    assert list((tmp_path / "v1/loopback/decode_8_16").iterdir()) == []


@pytest.mark.usefixtures("no_plot")
def test_a_results_folder_that_cannot_be_written_is_named(tmp_path: Path, make_record: MakeRecord) -> None:
    (tmp_path / "v1").write_text("a file where a folder belongs")
    with pytest.raises(PreflightError, match="give another --results"):
        write_run(make_record(), tmp_path, [])


def test_a_kill_in_the_middle_leaves_nothing_under_the_final_name(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    source = tmp_path / "run.json"
    source.write_text(dump_run(make_record()))
    program = (
        "import os, signal, sys, pathlib\n"
        "from lean.bench import store\n"
        "from lean.bench.record import read_run\n"
        "store.write_report = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.write_run(read_run(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]), [])\n"
    )
    results = tmp_path / "results"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, source, results], env=environ, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    left = [entry.name for entry in (results / "v1/loopback/decode_8_16").iterdir()]
    assert len(left) == 1 and left[0].startswith(".") and left[0].endswith(".partial")
    assert list_runs(results).rows == () and list_runs(results).broken == ()


def test_report_and_plot_are_the_same_bytes_when_made_again_from_the_json(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    path = write_run(full_record(make_record), tmp_path / "results", [])
    again = tmp_path / "again"
    again.mkdir()
    write_pages(read_run(path), again)
    for name in ("report.md", "plot.png"):
        assert (again / name).read_bytes() == (path / name).read_bytes()


def test_the_plot_is_a_picture_of_the_announced_size(tmp_path: Path, make_record: MakeRecord) -> None:
    path = write_run(make_record(), tmp_path, [])
    with Image.open(path / "plot.png") as picture:
        picture.load()
        assert (picture.format, picture.size) == ("PNG", (1440, 960))
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None and len(colours) > 50  # lines, marks and text, not an empty page


@pytest.mark.parametrize("count", [None, 1])
def test_the_plot_also_draws_odd_runs(tmp_path: Path, make_record: MakeRecord, count: int | None) -> None:
    """One round, one stream, counts unknown, and gaps over several orders of magnitude."""
    (sample, *_) = [s for s in make_record().samples if s.phase == "measured"]
    odd = dataclasses.replace(
        sample, event_tokens=(count,) * 16, event_ns=tuple(10_000_000 + 2**i * 1000 for i in range(16))
    )
    path = write_run(make_record(samples=(odd,)), tmp_path, [])
    assert (path / "plot.png").stat().st_size > 10_000


def test_a_failed_run_without_samples_has_a_report_and_no_plot(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    failure = Failure(kind="NotReadyError", message="no service there", exit_code=6)
    empty = make_record(
        status="failed",
        failure=failure,
        pack=None,
        backend=None,
        samples=(),
        metrics=dataclasses.replace(
            make_record().metrics,
            **dict.fromkeys(("tokens_per_s", "request_tokens_per_s", "decode_tokens_per_s", "ttft_s"), None),
            **dict.fromkeys(("tpot_s", "itl_s", "e2e_s", "bytes_per_s", "bandwidth_share"), None),
        ),
    )
    path = write_run(empty, tmp_path, [])
    assert not (path / "plot.png").exists()
    report = (path / "report.md").read_text()
    assert "no numbers, the run failed" in report and "NotReadyError: no service there" in report
    assert "plot.png)" not in report
    (row,) = list_runs(tmp_path).rows
    assert (row.status, row.note, row.tokens_per_s_median) == ("failed", "no service there", None)


@pytest.mark.usefixtures("no_plot")
def test_the_report_explains_itself(tmp_path: Path, make_record: MakeRecord) -> None:
    report = (write_run(full_record(make_record), tmp_path, []) / "report.md").read_text()
    for said in (
        "8 tokens",
        "16 tokens back",
        "contract tiny-cpu is not official",
        "throttled: GPU 0 hot \\| &lt;b>",
        "c0c0c0c0",
        "TTFT (ms) | 10.00",
        "NVIDIA H100 80GB HBM3",
        "git checkout 0123456789abcdef",
        "share of the data sheet's bandwidth (%)",
        "python -m lean.bench report",
    ):
        assert said in report, said


def test_the_environment_holds_named_settings_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("HF_TOKEN", "canary-secret")
    found = environment()
    assert found["settings"]["OMP_NUM_THREADS"] == "2"
    assert "canary-secret" not in json.dumps(found)


def test_reading_records_needs_neither_numpy_nor_matplotlib_nor_httpx() -> None:
    program = (
        "import sys; import lean.bench.record, lean.bench.results, lean.bench.report\n"
        "heavy = {'numpy', 'matplotlib', 'httpx', 'tokenizers', 'torch', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- listing and showing


def test_runs_are_listed_with_their_numbers(tmp_path: Path, make_record: MakeRecord) -> None:
    path = put(make_record(), tmp_path)
    (row,) = list_runs(tmp_path).rows
    assert (row.host, row.profile, row.id) == ("loopback", "decode_8_16", NAME)
    assert (row.status, row.label, row.backend, row.requests) == ("ok", "exploratory", "torch", 6)
    assert row.ttft_s_median == pytest.approx(0.010)
    assert row.tokens_per_s_median == pytest.approx(32 / 0.040)
    assert row.path == str(path)


def test_an_empty_or_missing_folder_has_no_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path).rows == ()
    assert list_runs(tmp_path / "none").broken == ()


def hostile(text: str, old: str, new: str) -> bytes:
    assert old in text, old
    return text.replace(old, new, 1).encode("utf-8", "surrogatepass")


CORRUPTIONS: dict[str, Callable[[str], bytes]] = {
    "truncated": lambda text: text[: len(text) // 2].encode(),
    "empty": lambda _: b"",
    "not an object": lambda _: b"[1, 2]",
    "not UTF-8": lambda text: b"\xff" + text.encode(),
    "nested deeply": lambda _: b"[" * 200_000,
    "NaN": lambda text: hostile(text, '"requests": 3', '"requests": NaN'),
    "infinity": lambda text: hostile(text, '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e999'),
    "wrong type": lambda text: hostile(text, '"requests": 3', '"requests": "3"'),
    "unknown key": lambda text: hostile(text, '"status"', '"extra": 1, "status"'),
    "missing key": lambda text: hostile(text, ' "status": "ok",', ""),
    "duplicate key": lambda text: hostile(text, '"status"', '"status": "ok", "status"'),
    "another schema": lambda text: hostile(text, "run/v1", "run/v9"),
    "another version": lambda text: hostile(text, '"schema_version": 3', '"schema_version": 4'),
    "unknown status": lambda text: hostile(text, '"status": "ok"', '"status": "great"'),
    "name that climbs": lambda text: hostile(text, '"id": "20260203', '"id": "../../20260203'),
    "host that climbs": lambda text: hostile(text, '"host": "loopback"', '"host": "../x"'),
    "profile that climbs": lambda text: hostile(text, '"id": "decode_8_16"', '"id": "../decode"'),
    "another host": lambda text: hostile(text, '"host": "loopback"', '"host": "elsewhere"'),
    "uneven samples": lambda text: hostile(text, '"event_ns": [', '"event_ns": [0, '),
    "giant number": lambda text: hostile(text, '"requests": 3', '"requests": ' + "9" * 5000),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_bad_record_is_named_and_the_others_are_still_listed(
    tmp_path: Path, make_record: MakeRecord, name: str
) -> None:
    good = put(make_record(), tmp_path)
    bad = good.with_name("20260203T040507.000Z-0123456")
    bad.mkdir()
    text = (good / "run.json").read_text().replace(NAME, bad.name)
    (bad / "run.json").write_bytes(CORRUPTIONS[name](text))
    found = list_runs(tmp_path)
    assert [row.id for row in found.rows] == [NAME]
    (broken,) = found.broken
    assert broken.path == str(bad)
    assert str(bad / "run.json") in broken.problem
    assert "\n" not in broken.problem and len(broken.problem) < 1000


def test_links_pipes_and_missing_records_are_refused_without_hanging(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    good = put(make_record(), tmp_path)
    for number, kind in enumerate(("link", "pipe", "none")):
        folder = good.with_name(f"20260203T04050{number}.000Z-0123456")
        folder.mkdir()
        if kind == "link":
            (folder / "run.json").symlink_to(good / "run.json")
        elif kind == "pipe":
            os.mkfifo(folder / "run.json")
    good.with_name("20260203T040509.000Z-0123456").symlink_to(good, target_is_directory=True)
    found = list_runs(tmp_path)
    assert [row.id for row in found.rows] == [NAME]
    problems = [broken.problem for broken in found.broken]
    assert len(problems) == 3
    assert all("not a regular file" in problem for problem in problems[:2])
    assert "cannot be read" in problems[2]


@pytest.mark.usefixtures("no_plot")
def test_text_of_a_record_cannot_steer_the_terminal(tmp_path: Path, make_record: MakeRecord) -> None:
    nasty = "\x1b]0;owned\x07\u202e evil \ud800"
    record = make_record(
        status="failed",
        failure=Failure(kind="LeanError", message=nasty, exit_code=1),
        command=("python", nasty),
        notes=(nasty,),
    )
    path = write_run(record, tmp_path, [nasty])
    (row,) = list_runs(tmp_path).rows
    shown = show_run(path)
    for text in (
        row.note,
        *(value for _, value in shown.facts),
        *shown.reasons,
        (path / "report.md").read_text(),
    ):
        assert not set(text) & set("\x1b\x07\u202e\ud800")
    assert read_run(path) == record


def test_a_run_is_shown_in_readable_units(tmp_path: Path, make_record: MakeRecord) -> None:
    shown = show_run(put(make_record(), tmp_path))
    facts = dict(shown.facts)
    assert facts["run"] == f"loopback / decode_8_16 / {NAME}"
    assert facts["pack LOCK"].startswith("c0c0")
    assert facts["operator coverage"].startswith("0.0%")
    assert facts["machine"] == "unknown"
    by_name = {row.name: row for row in shown.metrics}
    assert (by_name["TTFT"].unit, by_name["TTFT"].values.median) == ("ms", pytest.approx(10.0))
    assert by_name["TPOT"].values.median == pytest.approx(2.0)
    assert shown.reasons == ()
    assert shown.files == ("run.json",)


def test_the_machine_is_described_from_its_facts_whatever_they_hold() -> None:
    facts = {
        "cpu": {"model": "Grace", "usable": 20},
        "memory": {"total": 128 << 30},
        "gpus": [{"name": "NVIDIA GB10"}],
        "system": {"arch": "aarch64", "os": "Ubuntu 24.04", "kernel": "6.11"},
    }
    said = "Grace, aarch64, 20 usable processors, 128.0 GiB memory, NVIDIA GB10, Ubuntu 24.04, 6.11"
    assert machine_line(facts) == said
    odd: dict[str, Any] = {"cpu": 3, "memory": {"total": "much"}, "gpus": [None], "system": []}
    assert machine_line(odd) == "unknown"


def test_a_run_is_found_by_path_by_the_start_of_its_name_and_as_the_latest(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    old = put(make_record(), tmp_path)
    release = dataclasses.replace(make_record().release, git_sha="fedcba98")
    new = put(make_record(id="20270203T040506.789Z-fedcba9", release=release), tmp_path)
    assert find_run(tmp_path, "latest") == new
    assert find_run(tmp_path, "2026") == old
    assert find_run(tmp_path, str(old)) == old
    for name, problem in (("20", "2 runs start with"), ("1999", "no run is named"), ("", "no run is named")):
        with pytest.raises(UsageError, match=problem):
            find_run(tmp_path, name)


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"run\.json: cannot be read"):
        show_run(tmp_path)


def test_rows_keep_the_summary_of_the_record(make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record()
    assert record.metrics.tokens_per_s is not None
    assert run_row(record, tmp_path).tokens_per_s_best == record.metrics.tokens_per_s.maximum
    assert all(row.values.count > 0 for row in metric_rows(record))


def test_a_sample_needs_a_count_for_every_event(make_sample: Callable[..., Sample]) -> None:
    changes: dict[str, Any] = {"event_ns": (1, 2), "event_tokens": (1,)}
    with pytest.raises(ValueError, match="1 counts for 2 events"):
        make_sample(**changes)
