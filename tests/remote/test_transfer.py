"""Push and pull against both servers, by rsync and by chunks.

Oracles: diff(1), sha256sum(1), the file system.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO, lock_is_free, pattern, until

from lean.errors import PreflightError, TransferError, UsageError
from lean.transfer.send import Source
from lean.transfer.stage import Stage
from remote.transfer.copy import Method, Progress, pull, push, push_source
from remote.transfer.rsync import local_rsync

MIB = 1 << 20


@pytest.fixture(params=["auto", "chunks"])
def method(request: pytest.FixtureRequest) -> Method:
    """`auto` means rsync here, since both ends have it."""
    if request.param == "auto" and local_rsync() is None:
        pytest.skip("needs rsync with --partial-dir and --files-from")
    chosen: Method = request.param
    return chosen


def write(path: Path, size: int, seed: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pattern(size, seed))
    return path


def sha256sum(path: Path) -> str:
    return (
        subprocess.run(["sha256sum", "-b", "--", path], capture_output=True, text=True, check=True)
        .stdout.split()[0]
        .lstrip("\\")
    )


def same_trees(one: Path, other: Path) -> bool:
    return subprocess.run(["diff", "-r", "--no-dereference", one, other]).returncode == 0


def a_tree(root: Path) -> Path:
    write(root / "weights" / "one.bin", 300_000)
    write(root / "weights" / "two.bin", 200_000, seed=3)
    write(root / "run.sh", 10).chmod(0o755)
    (root / "empty file").touch()
    (root / "empty folder" / "inside").mkdir(parents=True)
    (root / "odd $(id) 'name'\n").write_text("odd")
    (root / "latest").symlink_to("weights/one.bin")
    (root / "weights" / "up").symlink_to("../run.sh")
    return root


def nothing_staged(place: Path) -> bool:
    return not list(place.glob(".*lean-part*"))


def test_a_pushed_file_is_what_was_sent(any_host: Any, place: Path, method: Method, tmp_path: Path) -> None:
    source = write(tmp_path / "a file", 3 * MIB + 17)
    source.chmod(0o755)
    done = push(any_host.connect(), source, f"{place}/new/target", method=method)

    arrived = place / "new" / "target"
    assert done.sha256 == sha256sum(source) == sha256sum(arrived)
    assert done.method == ("rsync" if method == "auto" else "chunks")
    assert (done.files, done.size, done.unchanged) == (1, 3 * MIB + 17, False)
    assert stat.S_IMODE(arrived.stat().st_mode) == 0o700
    assert arrived.stat().st_mtime_ns == source.stat().st_mtime_ns
    assert nothing_staged(place / "new")


def test_a_pushed_tree_is_an_exact_copy(any_host: Any, place: Path, method: Method, tmp_path: Path) -> None:
    source, target = a_tree(tmp_path / "tree"), place / "tree"
    connection = any_host.connect()
    push(connection, source, str(target), method=method)
    assert same_trees(source, target)

    (source / "weights" / "two.bin").unlink()
    shutil.rmtree(source / "empty folder")
    write(source / "weights" / "one.bin", 300_000, seed=5)
    (source / "latest").unlink()
    (source / "latest").mkdir()
    push(connection, source, str(target), replace=True, method=method)

    assert same_trees(source, target)
    assert {stat.S_IMODE(p.lstat().st_mode) for p in target.rglob("*") if p.is_dir()} == {0o700}
    assert nothing_staged(place)


def test_a_pulled_tree_and_file_are_exact_copies(
    any_host: Any, place: Path, method: Method, tmp_path: Path
) -> None:
    source = a_tree(place / "tree")
    connection = any_host.connect()
    tree = pull(connection, str(source), tmp_path / "got", method=method)
    file = pull(connection, str(source / "weights" / "one.bin"), tmp_path / "one", method=method)

    assert same_trees(source, tmp_path / "got")
    assert file.sha256 == sha256sum(tmp_path / "one") == tree.hashes["weights/one.bin"]
    assert tree.method == file.method == ("rsync" if method == "auto" else "chunks")
    assert nothing_staged(tmp_path)


def test_what_only_the_target_holds_is_lost_on_request_only(
    any_host: Any, place: Path, method: Method, tmp_path: Path
) -> None:
    source, target = a_tree(tmp_path / "tree"), a_tree(place / "tree")
    (target / "notes").mkdir()
    (target / "notes" / "mine.txt").write_text("kept")
    write(target / "weights" / "one.bin", 300_000, seed=9)
    connection = any_host.connect()

    with pytest.raises(PreflightError, match=r"holds 'notes' and 1 more, .* would be lost.*--replace"):
        push(connection, source, str(target), method=method)
    assert (target / "notes" / "mine.txt").read_text() == "kept"
    assert nothing_staged(place)
    with pytest.raises(PreflightError, match="would be lost"):
        pull(connection, str(source), target, method=method)

    pull(connection, str(source), target, replace=True, method=method)
    assert same_trees(source, target)


def test_what_comes_to_the_target_meanwhile_is_not_lost_either(
    any_host: Any, place: Path, method: Method, tmp_path: Path
) -> None:
    source, target = a_tree(tmp_path / "tree"), a_tree(place / "tree")
    write(source / "weights" / "one.bin", 300_000, seed=5)

    def meanwhile(progress: Progress) -> None:
        (target / "mine.txt").write_text("kept")

    with pytest.raises(PreflightError, match=r"holds 'mine\.txt', .* would be lost"):
        push(any_host.connect(), source, str(target), method=method, on_progress=meanwhile)
    assert (target / "mine.txt").read_text() == "kept"
    assert (target / "weights" / "two.bin").exists()


def test_a_changed_tree_takes_the_place_of_what_it_was_without_asking(
    any_host: Any, place: Path, method: Method, tmp_path: Path
) -> None:
    source, target = a_tree(tmp_path / "tree"), place / "tree"
    connection = any_host.connect()
    push(connection, source, str(target), method=method)
    write(source / "weights" / "one.bin", 300_000, seed=5)
    write(source / "weights" / "three.bin", 10)
    push(connection, source, str(target), method=method)
    assert same_trees(source, target)


def test_an_equal_copy_is_left_alone_and_costs_no_bytes(
    any_host: Any, place: Path, method: Method, tmp_path: Path
) -> None:
    source, connection = a_tree(tmp_path / "tree"), any_host.connect()
    push(connection, source, f"{place}/tree", method=method)
    before = (place / "tree").stat().st_ino
    again = push(connection, source, f"{place}/tree", method=method)

    assert (again.unchanged, again.sent) == (True, 0)
    assert (place / "tree").stat().st_ino == before


@pytest.mark.fault("equal size and time, other bytes", "push")
def test_equal_size_and_time_with_other_bytes_is_noticed(
    any_host: Any, place: Path, method: Method, tmp_path: Path
) -> None:
    source, connection = tmp_path / "tree", any_host.connect()
    file = write(source / "f", 5000)
    push(connection, source, f"{place}/tree", method=method)
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    write(file, 5000, seed=9)
    os.utime(file, ns=times)
    push(connection, source, f"{place}/tree", method=method)

    assert same_trees(source, place / "tree")


@pytest.mark.fault("Ctrl-C", "push")
def test_a_cut_push_leaves_the_old_file_and_goes_on_where_it_was(
    any_host: Any, place: Path, tmp_path: Path
) -> None:
    source, connection = write(tmp_path / "f", 24 * MIB), any_host.connect()
    (place / "f").write_text("the old one")

    def cut(progress: Progress) -> None:
        if progress.done > 16 * MIB:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push(connection, source, f"{place}/f", method="chunks", on_progress=cut)
    assert (place / "f").read_text() == "the old one"
    staged = place / ".f.lean-part" / "data"
    until(lambda: lock_is_free(place / "f"))
    had = staged.stat().st_size
    done = push(connection, source, f"{place}/f", method="chunks")

    assert had > 0
    assert done.sent == 24 * MIB - had
    assert sha256sum(place / "f") == sha256sum(source)


@pytest.mark.parametrize("left", [".lean-partial/data", ".data.Ab3xYz"])
def test_rsync_goes_on_from_what_an_earlier_rsync_left(
    any_host: Any, place: Path, tmp_path: Path, left: str
) -> None:
    if local_rsync() is None:
        pytest.skip("needs rsync with --partial-dir and --files-from")
    source = tmp_path / "f"
    source.write_bytes(os.urandom(8 * MIB))
    partial = place / ".f.lean-part" / left
    partial.parent.mkdir(parents=True)
    partial.write_bytes(source.read_bytes()[: 6 * MIB])
    done = push(any_host.connect(), source, f"{place}/f")

    assert done.method == "rsync"
    assert done.sent < 3 * MIB
    assert sha256sum(place / "f") == sha256sum(source)


@pytest.mark.fault("one flipped byte in what is staged", "push")
def test_a_flipped_byte_in_what_was_staged_does_not_survive(
    any_host: Any, place: Path, method: Method, tmp_path: Path
) -> None:
    source = write(tmp_path / "f", 2 * MIB)
    staged = place / ".f.lean-part" / "data"
    staged.parent.mkdir()
    damaged = bytearray(source.read_bytes())
    damaged[MIB] ^= 1
    staged.write_bytes(damaged)
    os.utime(staged, ns=(source.stat().st_mtime_ns,) * 2)  # rsync's quick check would believe it
    push(any_host.connect(), source, f"{place}/f", method=method)

    assert sha256sum(place / "f") == sha256sum(source)


@pytest.mark.fault("one flipped byte in what is partial", "push")
def test_a_flipped_byte_in_what_rsync_had_begun_does_not_survive(
    any_host: Any, place: Path, tmp_path: Path
) -> None:
    if local_rsync() is None:
        pytest.skip("needs rsync with --partial-dir and --files-from")
    source = write(tmp_path / "f", 2 * MIB)
    partial = place / ".f.lean-part" / ".lean-partial" / "data"
    partial.parent.mkdir(parents=True)
    damaged = bytearray(source.read_bytes()[:MIB])
    damaged[MIB // 2] ^= 1
    partial.write_bytes(damaged)
    push(any_host.connect(), source, f"{place}/f")

    assert sha256sum(place / "f") == sha256sum(source)


@pytest.mark.fault("source changes under way", "push")
def test_a_source_that_changes_under_way_replaces_nothing(
    any_host: Any, place: Path, method: Method, tmp_path: Path
) -> None:
    file = write(tmp_path / "tree" / "f", MIB)
    (place / "tree").mkdir()
    (place / "tree" / "f").touch()
    listed = Source.of(str(tmp_path / "tree"))
    write(file, MIB + 1)

    with pytest.raises(TransferError, match="f changed while it was read; nothing was replaced"):
        push_source(any_host.connect(), listed, f"{place}/tree", method=method)
    assert (place / "tree" / "f").read_bytes() == b""


@pytest.mark.fault("source changes under way", "push")
def test_a_source_that_grows_while_it_is_sent_replaces_nothing(
    any_host: Any, place: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "f", 8 * MIB)

    def grow(progress: Progress) -> None:
        with open(source, "ab") as file:
            file.write(b"more")

    with pytest.raises(TransferError, match="changed while it was read"):
        push(any_host.connect(), source, f"{place}/f", method="chunks", on_progress=grow)
    assert not (place / "f").exists()


def test_links_left_by_an_attempt_cut_before_its_rename_do_not_lead_into_the_good_copy(
    any_host: Any, place: Path, method: Method, tmp_path: Path
) -> None:
    good = write(place / "tree" / "f", 5000)
    staged = place / ".tree.lean-part" / "data"
    staged.mkdir(parents=True)
    os.link(good, staged / "f")
    (staged / "g").symlink_to(good)
    write(tmp_path / "tree" / "f", 6000, seed=7)
    moving = write(tmp_path / "tree" / "g", 10)
    listed = Source.of(str(tmp_path / "tree"))
    moving.unlink()
    before = sha256sum(good)

    with pytest.raises(TransferError):
        push_source(any_host.connect(), listed, f"{place}/tree", method=method)
    assert sha256sum(good) == before
    write(moving, 10)
    push(any_host.connect(), tmp_path / "tree", f"{place}/tree", method=method)
    assert same_trees(tmp_path / "tree", place / "tree")


@pytest.mark.fault("two at once", "push")
def test_the_second_of_two_pushes_names_the_first(
    any_host: Any, place: Path, method: Method, tmp_path: Path
) -> None:
    source, connection = write(tmp_path / "f", 100), any_host.connect()
    with Stage(f"{place}/f", who="someone@elsewhere", private=True):
        with pytest.raises(PreflightError, match=r"being written by someone@elsewhere \(pid \d+\)"):
            push(connection, source, f"{place}/f", method=method)
        assert not (place / "f").exists()

    push(connection, source, f"{place}/f", method=method)
    assert (place / "f").read_bytes() == source.read_bytes()


@pytest.mark.fault("kill -9 of a holder of the lock", "push")
def test_a_holder_that_was_killed_leaves_no_lock(any_host: Any, place: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from lean.transfer.stage import Stage\n"
        f"with Stage({str(place / 'f')!r}, who='x', private=True):\n"
        "  print('held', flush=True); time.sleep(60)"
    )
    env = os.environ | {"PYTHONPATH": str(REPO)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()

    push(any_host.connect(), write(tmp_path / "f", 100), f"{place}/f")
    assert (place / "f").stat().st_size == 100


@pytest.mark.fault("kill -9 between the two renames of a folder", "push")
def test_a_swap_that_was_cut_in_half_is_mended(any_host: Any, place: Path, tmp_path: Path) -> None:
    old = place / ".tree.lean-part" / "old"
    write(old / "f", 10)
    source = tmp_path / "tree"
    write(source / "f", 10)
    done = push(any_host.connect(), source, f"{place}/tree")

    assert done.unchanged
    assert same_trees(source, place / "tree")


@pytest.fixture
def small_disk(place: Path, mount_small_disk: Callable[[Path, int], Path]) -> Path:
    return mount_small_disk(place / "disk", 2048)


@pytest.mark.fault("disk full (data)", "push")
def test_too_little_space_is_said_before_a_byte_moves(
    any_host: Any, small_disk: Path, method: Method, tmp_path: Path
) -> None:
    (small_disk / "f").write_text("the old one")
    moved: list[Progress] = []
    with pytest.raises(PreflightError, match=r"4\.2 MB needed, .* MB free"):
        push(
            any_host.connect(),
            write(tmp_path / "f", 4 * MIB),
            f"{small_disk}/f",
            method=method,
            on_progress=moved.append,
        )

    assert moved == []
    assert [path.name for path in small_disk.iterdir()] == ["f"]
    assert (small_disk / "f").read_text() == "the old one"


@pytest.mark.fault("disk full (data)", "push")
def test_a_disk_that_fills_up_under_way_replaces_nothing(
    any_host: Any, small_disk: Path, tmp_path: Path
) -> None:
    (small_disk / "f").write_text("the old one")

    def fill(progress: Progress) -> None:
        if not (small_disk / "filler").exists():
            write(small_disk / "filler", MIB)

    with pytest.raises(PreflightError, match="No space left"):
        push(
            any_host.connect(),
            write(tmp_path / "f", MIB + MIB // 2),
            f"{small_disk}/f",
            method="chunks",
            on_progress=fill,
        )
    assert (small_disk / "f").read_text() == "the old one"


@pytest.mark.security("shell metacharacters, newlines and leading dashes are inert")
@pytest.mark.parametrize("name", ["$(touch canary)", "a b'c\"d", "-rf", ";touch canary", "*"])
def test_names_are_inert(any_host: Any, place: Path, method: Method, tmp_path: Path, name: str) -> None:
    source, connection = write(tmp_path / name, 1000), any_host.connect()
    push(connection, source, f"{place}/{name}", method=method)
    pull(connection, f"{place}/{name}", tmp_path / "back" / name, method=method)

    assert (tmp_path / "back" / name).read_bytes() == source.read_bytes()
    assert not [*any_host.home.rglob("canary"), *tmp_path.rglob("canary")]


@pytest.mark.parametrize("target", ["relative/path", "-x", "", "/a\nb"])
def test_a_target_that_is_no_plain_absolute_path_is_refused(
    any_host: Any, tmp_path: Path, target: str
) -> None:
    with pytest.raises(UsageError):
        push(any_host.connect(), write(tmp_path / "f", 1), target)


def test_a_pipe_in_the_tree_is_refused_by_name(any_host: Any, place: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    os.mkfifo(tmp_path / "tree" / "pipe")
    with pytest.raises(TransferError, match="pipe is neither file, folder nor link"):
        push(any_host.connect(), tmp_path / "tree", f"{place}/tree")


def test_a_source_that_is_not_there_is_named(any_host: Any, place: Path, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"cannot read .*/nothing: No such file"):
        push(any_host.connect(), tmp_path / "nothing", f"{place}/x")
    with pytest.raises(TransferError, match=r"cannot read .*/nothing: No such file"):
        pull(any_host.connect(), f"{place}/nothing", tmp_path / "x")
    assert list(place.iterdir()) == []
    assert list(tmp_path.glob("x")) == []


def test_a_file_never_replaces_a_folder(any_host: Any, place: Path, method: Method, tmp_path: Path) -> None:
    (place / "x" / "y").mkdir(parents=True)
    with pytest.raises(TransferError, match="is a folder and the source a file"):
        push(any_host.connect(), write(tmp_path / "x", 5), f"{place}/x", method=method)
    assert (place / "x" / "y").is_dir()


def test_a_host_without_the_named_python_is_told_what_to_install(any_host: Any, tmp_path: Path) -> None:
    connection = any_host.connect(host=any_host.spec(python="python9"))
    with pytest.raises(PreflightError, match="no python9 there"):
        push(connection, write(tmp_path / "f", 5), f"{tmp_path}/t")


def test_an_rsync_without_what_we_need_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "rsync"
    fake.write_text("#!/bin/sh\necho 'openrsync: protocol version 29'; echo '--timeout --archive'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    assert local_rsync.__wrapped__() is None


def test_progress_ends_at_the_whole(any_host: Any, place: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    push(
        any_host.connect(), write(tmp_path / "f", MIB), f"{place}/f", method="chunks", on_progress=seen.append
    )

    assert (seen[-1].done, seen[-1].total) == (MIB, MIB)
    assert seen[-1].rate > 0
