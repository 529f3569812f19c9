"""The checkout on the host. Oracle: git and diff(1)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lean.errors import PreflightError, TransferError
from remote.transfer import sync as sync_module
from remote.transfer.release import read_release
from remote.transfer.sync import sync


def git(repo: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", "-C", repo, *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A small checkout with everything a checkout may have."""
    root = tmp_path / "repo"
    (root / "pkg").mkdir(parents=True)
    (root / "results").mkdir()
    for name, text in {
        "pkg/a.py": "a = 1\n",
        "pkg/odd $(id) name": "x",
        "pkg/new\nline": "y",
        "hosts.yaml": "schema: hosts/v1\n",
        ".gitignore": "ignored\nhosts.local.yaml\n",
        "results/r.json": "{}",
    }.items():
        (root / name).write_text(text)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("pkg/a.py")
    git(root, "init")
    git(root, "add", "-A")
    git(root, "commit", "-m", "first")
    (root / "ignored").write_text("not sent")
    (root / "hosts.local.yaml").write_text("not sent")
    return root


def content(folder: Path) -> dict[str, str]:
    found = {}
    for path in folder.rglob("*"):
        if ".git" in path.parts:
            continue
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"-> {path.readlink()}"
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_text() + (
                "*" if os.access(path, os.X_OK) else ""
            )
    return found


def test_a_release_is_what_git_lists_less_the_results(any_host: Any, repo: Path) -> None:
    (repo / "untracked").write_text("sent")
    done = sync(any_host.connect(), repo)

    there = content(Path(done.path))
    mark = json.loads(there.pop("release.json"))
    expected = content(repo)
    for name in list(expected):
        if name.startswith("results/") or name in ("ignored", "hosts.local.yaml"):
            del expected[name]
    assert {name: text.replace("*", "") for name, text in there.items()} == {
        name: text.replace("*", "") for name, text in expected.items()
    }
    assert there["run.sh"].endswith("*")
    assert set(mark["files"]) == set(there)
    assert mark["git_sha"] == git(repo, "rev-parse", "HEAD").strip()
    assert (mark["dirty"], mark["id"]) == (True, Path(done.path).name)


def test_a_release_that_is_there_costs_one_round_trip(
    any_host: Any, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sync(any_host.connect(), repo)
    connection = any_host.connect()
    trips: list[Any] = []
    real: Callable[..., Any] = connection.run
    monkeypatch.setattr(connection, "run", lambda *a, **k: trips.append(a) or real(*a, **k))
    monkeypatch.setattr(sync_module, "push_source", lambda *a, **k: pytest.fail("sent something"))
    again = sync(connection, repo)

    assert len(trips) == 1
    assert (again.unchanged, again.sent, again.path, again.root) == (True, 0, first.path, first.root)


def test_the_root_of_a_host_may_begin_with_a_tilde(any_host: Any, repo: Path) -> None:
    connection = any_host.connect(host=any_host.spec(root="~/lean"))
    done = sync(connection, repo)

    assert done.root == f"{any_host.home}/lean"
    assert Path(done.path, "release.json").exists()


def test_a_changed_checkout_is_a_new_release_with_deleted_files_gone(any_host: Any, repo: Path) -> None:
    connection = any_host.connect()
    first = sync(connection, repo)
    (repo / "pkg" / "a.py").write_text("a = 2\n")
    (repo / "run.sh").unlink()
    second = sync(connection, repo)

    assert second.path != first.path
    assert not Path(second.path, "run.sh").exists()
    assert Path(second.path, "pkg/a.py").read_text() == "a = 2\n"
    assert Path(first.path, "pkg/a.py").read_text() == "a = 1\n"
    same = Path("pkg", "odd $(id) name")
    assert (Path(second.path) / same).samefile(Path(first.path) / same)


@pytest.mark.fault("one flipped byte in what is final", "sync")
@pytest.mark.parametrize("damage", ["changed", "missing", "added", "unmarked"])
def test_a_damaged_release_is_made_whole_again(any_host: Any, repo: Path, damage: str) -> None:
    connection = any_host.connect()
    first = sync(connection, repo)
    victim = Path(first.path) / "pkg" / "a.py"
    whole = content(Path(first.path))
    if damage == "changed":
        times = victim.stat()
        victim.write_text("a = 9\n")
        os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif damage == "missing":
        victim.unlink()
    elif damage == "added":
        (victim.parent / "b.py").write_text("")
    else:
        Path(first.path, "release.json").unlink()
    again = sync(connection, repo)

    assert not again.unchanged
    assert content(Path(first.path)) == whole


def test_what_running_a_release_leaves_in_it_does_not_make_it_incomplete(any_host: Any, repo: Path) -> None:
    connection = any_host.connect()
    cache = Path(sync(connection, repo).path) / "pkg" / "__pycache__"
    cache.mkdir()
    (cache / "a.pyc").touch()

    assert sync(connection, repo).unchanged


def test_an_address_in_hosts_yaml_changes_neither_id_nor_dirty_flag(repo: Path) -> None:
    clean = read_release(repo)
    (repo / "hosts.yaml").write_text("schema: hosts/v1\ndefault: mine\n")
    edited = read_release(repo)

    assert not clean.dirty
    assert (edited.id, edited.dirty, edited.diff_sha256) == (clean.id, False, None)
    assert "hosts.yaml" in edited.files


def test_id_and_diff_hash_follow_content_and_mode(repo: Path) -> None:
    seen = [read_release(repo)]
    (repo / "pkg" / "a.py").write_text("a = 2\n")
    seen.append(read_release(repo))
    (repo / "pkg" / "a.py").chmod(0o755)
    seen.append(read_release(repo))
    (repo / "new").write_text("1")
    seen.append(read_release(repo))
    (repo / "new").write_text("2")
    seen.append(read_release(repo))

    assert len({release.id for release in seen}) == len({release.diff_sha256 for release in seen}) == 5
    assert [release.dirty for release in seen] == [False, True, True, True, True]


@pytest.mark.security("likely secrets are never synced")
@pytest.mark.parametrize(
    "name",
    [".env", ".env.local", "deploy/server.pem", "id_rsa", "x/id_ed25519", "tls.key", "A.P12", ".netrc"],
)
def test_a_likely_secret_is_refused_by_name_before_anything_is_sent(
    any_host: Any, repo: Path, name: str
) -> None:
    (repo / name).parent.mkdir(exist_ok=True)
    (repo / name).write_text("canary")
    with pytest.raises(PreflightError, match=r"by its name a secret.*\.gitignore") as caught:
        sync(any_host.connect(), repo)

    assert repr(name) in str(caught.value)
    assert not Path(any_host.host.root).exists()


@pytest.mark.parametrize("name", ["id_ed25519.pub", ".env.example", "keys.py", "environment"])
def test_a_name_that_only_resembles_a_secret_is_sent(repo: Path, name: str) -> None:
    (repo / name).write_text("")
    assert name in read_release(repo).files


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="is no git checkout"):
        read_release(tmp_path)


def test_a_checkout_without_a_commit_is_refused(tmp_path: Path) -> None:
    git(tmp_path, "init")
    with pytest.raises(PreflightError, match="has no commit yet"):
        read_release(tmp_path)


@pytest.mark.fault("source changes under way", "sync")
def test_a_file_that_changes_between_reading_and_sending_stops_the_sync(
    any_host: Any, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = read_release(repo)
    (repo / "pkg" / "a.py").write_text("a = 3\n")
    os.utime(
        repo / "pkg" / "a.py", ns=(1, next(e.mtime_ns for e in stale.source.entries if e.path == "pkg/a.py"))
    )
    monkeypatch.setattr(sync_module, "read_release", lambda repo: stale)
    connection = any_host.connect()

    with pytest.raises(TransferError, match="changed while it was read"):
        sync(connection, repo)
    assert [path.name for path in Path(connection.host.root, "releases").glob("[!.]*")] == []


def test_a_link_out_of_the_checkout_is_refused(repo: Path) -> None:
    (repo / "out").symlink_to("/etc/passwd")
    with pytest.raises(TransferError, match="may leave the tree"):
        read_release(repo)
