"""SHA256SUMS of a run, judged by coreutils, and what a listing may remember of files that did not change."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lean.bench import index
from lean.bench.record import RunRecord, dump_run, read_run
from lean.bench.results import list_runs, read_unaltered
from lean.bench.shown_run import show_run
from lean.bench.store import write_run
from lean.bench.sums import RAW_FILES, check_sums, write_sums
from lean.errors import ContractError, IntegrityError

MakeRecord = Callable[..., RunRecord]

pytestmark = pytest.mark.usefixtures("no_plot")


@pytest.fixture
def run(tmp_path: Path, make_record: MakeRecord) -> Path:
    """A run directory as the store writes it."""
    return write_run(make_record(), tmp_path, ["measured round 0"])


def sha256sum_agrees(run: Path) -> bool:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=run, capture_output=True
    )
    return done.returncode == 0


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as one that has not changed for long."""
    monkeypatch.setattr(index, "SETTLED_NS", -(10**18))


def test_the_sums_of_a_run_are_what_sha256sum_verifies(run: Path) -> None:
    listed = [line.split("  ")[1] for line in (run / "SHA256SUMS").read_text().splitlines()]
    assert listed == list(RAW_FILES)
    assert sha256sum_agrees(run)
    assert check_sums(run).verdict == "ok"


@pytest.mark.parametrize("name", RAW_FILES)
def test_a_changed_file_is_named_where_sha256sum_finds_it_too(run: Path, name: str) -> None:
    data = (run / name).read_bytes()
    (run / name).write_bytes(data[:-1] + b" ")
    assert not sha256sum_agrees(run)
    (altered,) = check_sums(run).altered
    assert altered.startswith(f"{name} was changed")


def test_sums_that_another_program_wrote_are_read(run: Path) -> None:
    sums = subprocess.run(["sha256sum", "--binary", *RAW_FILES], cwd=run, capture_output=True, check=True)
    (run / "SHA256SUMS").write_bytes(sums.stdout)
    assert check_sums(run).verdict == "ok"


def test_every_way_to_lose_a_file_is_named(run: Path) -> None:
    (run / "env.json").unlink()
    (run / "log.txt").unlink()
    (run / "log.txt").symlink_to("samples.jsonl")
    sums = (run / "SHA256SUMS").read_text().splitlines(keepends=True)
    (run / "SHA256SUMS").write_text("".join(sums[1:]))
    problems = "; ".join(check_sums(run).altered)
    assert "env.json is gone" in problems
    assert "log.txt" in problems and "symbolic link" in problems
    assert "run.json is not in SHA256SUMS" in problems


@pytest.mark.parametrize(
    "text", ["what is this", "00  run.json\n", "a" * 64 + "  ../../etc/passwd\n", "\xff"]
)
def test_sums_that_are_none_count_as_altered(run: Path, text: str) -> None:
    (run / "SHA256SUMS").write_text(text, encoding="latin-1")
    assert check_sums(run).altered[0].startswith("SHA256SUMS: ")


def test_a_record_of_before_there_were_sums_stays_readable_and_says_so(run: Path) -> None:
    (run / "SHA256SUMS").unlink()
    (row,) = list_runs(run.parents[3]).rows
    assert row.sums == "no sums recorded"
    assert dict(show_run(run).facts)["files"] == "no sums recorded"
    assert read_unaltered(run) == read_run(run)


def test_a_record_edited_by_hand_is_named_and_hides_no_other(run: Path, make_record: MakeRecord) -> None:
    other = run.with_name("20260203T040507.000Z-0123456")
    write_run(make_record(id=other.name), run.parents[3], [])
    edit(run / "run.json", '"median": 800.0', '"median": 900.0')
    found = list_runs(run.parents[3])
    assert [row.id for row in found.rows] == [other.name]
    (broken,) = found.broken
    assert broken.kind == "altered"
    assert "run.json was changed" in broken.problem and "git checkout" in broken.problem
    shown = show_run(run)
    assert "run.json was changed" in shown.altered[0] and shown.metrics != ()
    with pytest.raises(IntegrityError, match=r"run\.json was changed"):
        read_unaltered(run)


def test_a_file_that_is_altered_beyond_reading_is_both(run: Path) -> None:
    (run / "run.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"run\.json was changed.*not the JSON of a record"):
        show_run(run)
    (broken,) = list_runs(run.parents[3]).broken
    assert broken.kind == "altered" and "not the JSON of a record" in broken.problem


@pytest.mark.parametrize(
    ("old", "new"),
    [('"schema_version": ', '"schema_version": 9'), ('"schema": "run/v1"', '"schema": "run/v2"')],
)
def test_a_record_of_a_newer_checkout_says_what_reads_it(
    run: Path, make_record: MakeRecord, old: str, new: str
) -> None:
    other = run.with_name("20260203T040507.000Z-0123456")
    other.mkdir()
    (other / "run.json").write_text(dump_run(make_record(id=other.name)))
    edit(other / "run.json", old, new)
    with pytest.raises(ContractError, match=r"written by a newer checkout.*update the checkout"):
        read_run(other)
    found = list_runs(run.parents[3])
    assert [row.id for row in found.rows] == [run.name]
    assert "update the checkout" in found.broken[0].problem


# --- what is remembered


@pytest.mark.usefixtures("settled")
def test_what_was_read_once_is_not_read_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = list_runs(tmp_path, tmp_path / "cache")
    monkeypatch.setattr("lean.bench.results.read_run", lambda _: pytest.fail("read again"))
    assert list_runs(tmp_path, tmp_path / "cache") == first
    assert first.rows[0].path == str(run)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("name", [*RAW_FILES, "SHA256SUMS"])
def test_an_edit_of_the_same_size_and_with_the_old_time_put_back_is_seen(
    run: Path, tmp_path: Path, name: str
) -> None:
    assert list_runs(tmp_path, tmp_path / "cache").broken == ()
    before = (run / name).stat()
    data = (run / name).read_bytes()
    (run / name).write_bytes(data[:10] + bytes([data[10] ^ 1]) + data[11:])
    os.utime(run / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [broken.kind for broken in list_runs(tmp_path, tmp_path / "cache").broken] == ["altered"]


def test_nothing_is_remembered_of_files_that_changed_a_moment_ago(run: Path, tmp_path: Path) -> None:
    assert not index.files_state(str(run)).settled
    list_runs(tmp_path, tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*")) == []


@pytest.mark.usefixtures("settled")
def test_runs_that_came_went_and_moved_are_seen(run: Path, tmp_path: Path, make_record: MakeRecord) -> None:
    cache = tmp_path / "cache"
    list_runs(tmp_path, cache)
    second = run.with_name("20260203T040507.000Z-0123456")
    write_run(make_record(id=second.name), tmp_path, [])
    assert len(list_runs(tmp_path, cache).rows) == 2
    shutil.rmtree(run)
    assert [row.id for row in list_runs(tmp_path, cache).rows] == [second.name]
    second.rename(second.with_name("20270203T040507.000Z-0123456"))
    (broken,) = list_runs(tmp_path, cache).broken
    assert "moved or renamed" in broken.problem
    assert list_runs(tmp_path, cache) == list_runs(tmp_path)


@pytest.mark.usefixtures("settled")
def test_an_index_that_is_damaged_or_of_other_code_is_as_none(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = list_runs(tmp_path, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    assert index.read_index(file) != {}
    for damaged in (whole[:-40], whole.replace(b'"ok"', b'"no"'), b"", b"\xff\n{}", b"[]"):
        file.write_bytes(damaged)
        assert index.read_index(file) == {}
        assert list_runs(tmp_path, tmp_path / "cache") == right
    monkeypatch.setattr(index, "_code", lambda: "another")
    assert index.read_index(file) == {}


@pytest.mark.usefixtures("settled")
def test_an_interrupted_listing_keeps_what_it_has_read(
    run: Path, tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = run.with_name("20260203T040507.000Z-0123456")
    write_run(make_record(id=later.name), tmp_path, [])

    def interrupted(path: Path) -> RunRecord:
        if path == later:
            raise KeyboardInterrupt
        return read_run(path)

    monkeypatch.setattr("lean.bench.results.read_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list_runs(tmp_path, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    assert list(index.read_index(file)) == [str(run)]


@pytest.mark.usefixtures("settled")
def test_a_folder_that_cannot_be_written_only_means_no_index(run: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder belongs")
    assert len(list_runs(tmp_path, tmp_path / "cache").rows) == 1


def test_sums_are_written_over_any_files(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    write_sums(tmp_path, ("run.json",))
    assert check_sums(tmp_path).verdict == "ok" and sha256sum_agrees(tmp_path)
