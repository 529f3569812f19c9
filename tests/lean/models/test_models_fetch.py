"""Fetching from hub-shaped servers through the hubs' own client libraries."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lean.errors import (
    AuthError,
    LeanError,
    PackError,
    PreflightError,
    TransferError,
    UnreachableError,
    UsageError,
)
from lean.files.exclusive import hold
from lean.leanpack.snapshot import read_snapshot
from lean.models.__main__ import main
from lean.models.fetch import fetch
from lean.models.huggingface import HuggingFaceSource

MODEL = "acme/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WANTED = [
    "README.md",
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "tokenizer.json",
]
SHARD = WANTED[2]
ROOT = Path(__file__).resolve().parents[3]
AnyHub = tuple[Any, Callable[..., Any]]


def names(folder: str | Path) -> list[str]:
    root = Path(folder)
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_snapshot_arrives_whole_with_its_record_last(any_hub: AnyHub, tmp_path: Path) -> None:
    hub, source = any_hub
    report = fetch(source(), MODEL, tmp_path / "models")
    assert Path(report.path).parent == tmp_path / "models" / "acme__tiny"
    assert names(report.path) == sorted([*WANTED, "fetch.json"])
    for name in WANTED:
        assert (Path(report.path) / name).read_bytes() == hub.files[name]
    record = read_snapshot(Path(report.path))
    assert record is not None
    assert record.revision == report.revision == Path(report.path).name
    assert all(file.hub_verified for file in record.files)
    assert (report.downloaded, report.reused) == (5, 0)
    assert report.bytes == sum(len(hub.files[name]) for name in WANTED)


@pytest.mark.security("no pickle is taken, no code of a model is run")
def test_pickles_and_code_are_listed_as_refused_and_never_asked_for(any_hub: AnyHub, tmp_path: Path) -> None:
    hub, source = any_hub
    report = fetch(source(), MODEL, tmp_path / "models")
    assert report.refused == ("modeling_tiny.py", "pytorch_model.bin")
    assert not [path for _, path in hub.asked if "pytorch_model.bin" in path or "modeling_tiny" in path]
    with pytest.raises(UsageError, match=r"never taken: modeling_tiny\.py, pytorch_model\.bin"):
        fetch(source(), MODEL, tmp_path / "models", allow=("*.bin", "*.py"))


def test_fetching_again_downloads_nothing_and_rewrites_nothing(any_hub: AnyHub, tmp_path: Path) -> None:
    hub, source = any_hub
    first = fetch(source(), MODEL, tmp_path / "models")
    hub.sent.clear()
    before = {path: path.stat().st_mtime_ns for path in Path(first.path).iterdir()}
    second = fetch(source(), MODEL, tmp_path / "models")
    assert (second.downloaded, second.reused, second.path) == (0, 5, first.path)
    assert hub.sent == {}
    assert {path: path.stat().st_mtime_ns for path in Path(first.path).iterdir()} == before


def test_metadata_first_then_the_rest(any_hub: AnyHub, tmp_path: Path) -> None:
    hub, source = any_hub
    first = fetch(source(), MODEL, tmp_path / "models", allow=("*.json",))
    assert names(first.path) == ["config.json", "fetch.json", "tokenizer.json"]
    hub.sent.clear()
    second = fetch(source(), MODEL, tmp_path / "models")
    assert (second.path, second.downloaded, second.reused) == (first.path, 3, 2)
    assert sorted(hub.sent) == [name for name in WANTED if not name.endswith(".json")]
    third = fetch(source(), MODEL, tmp_path / "models", allow=("*.json",))
    assert third.downloaded == 0
    record = read_snapshot(Path(third.path))
    assert record is not None
    assert [file.path for file in record.files] == WANTED, "a narrower fetch forgets nothing"


@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_a_damaged_file_is_noticed_and_brought_again(any_hub: AnyHub, tmp_path: Path, name: str) -> None:
    hub, source = any_hub
    path = Path(fetch(source(), MODEL, tmp_path / "models").path) / name
    raw = bytearray(path.read_bytes())
    raw[10] ^= 1
    path.write_bytes(bytes(raw))
    hub.sent.clear()
    assert fetch(source(), MODEL, tmp_path / "models").downloaded == 1
    assert list(hub.sent) == [name]
    assert path.read_bytes() == hub.files[name]


@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_bytes_without_the_hash_the_hub_states_are_refused(
    any_hub: AnyHub, tmp_path: Path, name: str
) -> None:
    hub, source = any_hub
    hub.stated[name] = "0" * 64
    with pytest.raises(TransferError):
        fetch(source(), MODEL, tmp_path / "models")
    (snapshot,) = [path for path in (tmp_path / "models" / "acme__tiny").iterdir() if path.name[0] != "."]
    assert not (snapshot / "fetch.json").exists()
    assert not (snapshot / name).exists()


def test_a_broken_connection_leaves_no_complete_marker_and_the_next_try_ends_right(
    any_hub: AnyHub, tmp_path: Path
) -> None:
    hub, source = any_hub
    hub.cut = {SHARD: 5000}
    try:
        fetch(source(), MODEL, tmp_path / "models")
    except LeanError:
        assert not list((tmp_path / "models").glob("*/*/fetch.json"))
    assert hub.cut == {}, "the connection was cut"
    report = fetch(source(), MODEL, tmp_path / "models")
    assert (Path(report.path) / SHARD).read_bytes() == hub.files[SHARD]
    assert 5000 in hub.sent[SHARD], "the second try went on where the first one stopped"


def test_a_killed_fetch_goes_on_where_it_stopped(any_hub: AnyHub, tmp_path: Path) -> None:
    hub, source = any_hub
    hub.files[SHARD] = bytes(range(256)) * (24 << 12)  # 24 MiB: more than twice what a client writes at once
    hub.cut, hub.stall = {SHARD: 23 << 20}, threading.Event()
    kind = {"huggingface": "hf", "modelscope": "modelscope"}[source().kind]
    argv = [sys.executable, "-m", "lean.models", "fetch", "--source", kind, "--id", MODEL]
    argv += ["--models", str(tmp_path / "models")]
    endpoints = {"HF_ENDPOINT": hub.url, "MODELSCOPE_ENDPOINT": hub.url}
    environment = {**os.environ, **endpoints, "HF_HOME": str(tmp_path / "hf")}
    with subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as killed:
        assert hub.stalled.wait(30)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and largest(tmp_path / "models") < 8 << 20:
            time.sleep(0.01)
        killed.kill()
    hub.stall.set()
    hub.stall = None
    hub.sent.clear()
    assert not list((tmp_path / "models").glob("*/*/fetch.json"))
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (Path(report["path"]) / SHARD).read_bytes() == hub.files[SHARD]
    (start,) = hub.sent[SHARD]
    assert start >= 8 << 20
    assert names(tmp_path / "models" / "acme__tiny" / report["revision"]) == sorted([*WANTED, "fetch.json"])
    assert not list((tmp_path / "models").glob("*/.*.partial"))


def largest(folder: Path) -> int:
    return max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0)


def test_a_commit_stays_pinned(huggingface_hub_server: Any, tmp_path: Path) -> None:
    source = HuggingFaceSource(id=MODEL, revision=COMMIT, endpoint=huggingface_hub_server.url)
    report = fetch(source, MODEL, tmp_path / "models", requested=COMMIT)
    assert (report.revision, report.requested) == (COMMIT, COMMIT)
    bodies = [path for command, path in huggingface_hub_server.asked if "/resolve/" in path]
    assert bodies
    assert all(f"/resolve/{COMMIT}/" in path for path in bodies)


def test_a_branch_of_modelscope_is_pinned_by_its_listing(modelscope_server: Any, tmp_path: Path) -> None:
    from lean.models.modelscope import ModelScopeSource

    source = ModelScopeSource(
        id=MODEL, revision=None, endpoint=modelscope_server.url, private=tmp_path / "private"
    )
    first = fetch(source, MODEL, tmp_path / "models")
    modelscope_server.files["config.json"] = b'{"model_type": "other"}'
    second = fetch(source, MODEL, tmp_path / "models")
    assert first.revision.startswith("listing-")
    assert first.revision != second.revision
    assert (Path(first.path) / "config.json").read_bytes() != (Path(second.path) / "config.json").read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "../escape.json",
        "/etc/x.json",
        "a/../../x.json",
        ".hidden.json",
        "-x.json",
        "a b.json",
        "a\nb.json",
        "a/b/c/d/e.json",
    ],
)
def test_a_listing_cannot_name_a_file_outside(any_hub: AnyHub, tmp_path: Path, path: str) -> None:
    hub, source = any_hub
    entry = {"type": "file", "path": path, "size": 2, "oid": "0" * 40}
    hub.listed = [{**entry, "Path": path, "Name": path, "Size": 2, "Sha256": "0" * 64, "Type": "blob"}]
    with pytest.raises(PackError, match="unsafe file name"):
        fetch(source(), MODEL, tmp_path / "models")
    assert hub.sent == {}


def test_a_listing_cannot_name_a_file_twice(any_hub: AnyHub, tmp_path: Path) -> None:
    hub, source = any_hub
    entry = {"type": "file", "path": "a.json", "size": 2, "oid": "0" * 40}
    hub.listed = [{**entry, "Path": "a.json", "Size": 2, "Sha256": "0" * 64, "Type": "blob"}] * 2
    with pytest.raises(PackError, match=r"lists a\.json twice"):
        fetch(source(), MODEL, tmp_path / "models")


@pytest.mark.parametrize(
    "answer", [b"[]", b"null", b'{"a": ', b'"x"', b"[1, 2]", b'{"Data": [1]}', b'{"sha": 7}']
)
def test_an_answer_that_is_no_hubs_is_one_clear_error(any_hub: AnyHub, tmp_path: Path, answer: bytes) -> None:
    hub, source = any_hub
    hub.broken_answer = answer
    with pytest.raises(LeanError) as caught:
        fetch(source(), MODEL, tmp_path / "models")
    assert hub.url in str(caught.value)


def test_a_token_of_the_environment_is_used_and_never_shown(
    any_hub: AnyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub, source = any_hub
    hub.token = "canary-9f2b"
    with pytest.raises(AuthError, match=r"set (HF_TOKEN|MODELSCOPE_API_TOKEN) where this runs"):
        fetch(source(), MODEL, tmp_path / "models")
    monkeypatch.setenv("HF_TOKEN", "wrong-canary-9f2b")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "wrong-canary-9f2b")
    with pytest.raises(AuthError) as caught:
        fetch(source(), MODEL, tmp_path / "models")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", hub.token)
    report = fetch(source(), MODEL, tmp_path / "models")
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    shown = "".join(capfd.readouterr()) + str(caught.value) + repr(report)
    assert "canary" not in shown
    assert not [data for data in written if b"canary" in data]


def test_a_token_does_not_follow_a_redirect_to_another_host(
    any_hub: AnyHub, storage_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, source = any_hub
    hub.token, hub.storage = "canary-9f2b", storage_server.url
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", hub.token)
    fetch(source(), MODEL, tmp_path / "models")
    assert sorted(storage_server.sent) == WANTED
    assert hub.authorised
    assert not storage_server.authorised


def test_an_unknown_model_and_an_unknown_revision_are_named(any_hub: AnyHub, tmp_path: Path) -> None:
    _, source = any_hub
    with pytest.raises(UsageError, match="acme/tiny at nonsense: no such model, revision or file"):
        fetch(source("nonsense"), MODEL, tmp_path / "models")


def test_a_hub_that_is_not_there_is_unreachable(any_hub: AnyHub, tmp_path: Path) -> None:
    _, source = any_hub
    nowhere = dataclasses.replace(source(), endpoint="http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match=r"http://127.0.0.1:9: acme/tiny at \w+: cannot be reached"):
        fetch(nowhere, MODEL, tmp_path / "models")


def test_a_second_fetch_of_the_same_snapshot_names_the_first(any_hub: AnyHub, tmp_path: Path) -> None:
    _, source = any_hub
    revision = source().listing().revision
    with (
        hold(tmp_path / "models" / "acme__tiny" / f".{revision}.lock", "x"),
        pytest.raises(PreflightError, match="already being written by process"),
    ):
        fetch(source(), MODEL, tmp_path / "models")


@pytest.mark.parametrize(
    "model_id", ["acme", "acme/", "../x", "a/b/c", "-a/b", "acme/..", "a b/c", "acme/a..b"]
)
def test_an_id_that_is_no_id_is_refused(any_hub: AnyHub, tmp_path: Path, model_id: str) -> None:
    _, source = any_hub
    with pytest.raises(UsageError, match="expected <organisation>/<name>"):
        fetch(source(), model_id, tmp_path / "models")


def test_the_record_is_plain_json(any_hub: AnyHub, tmp_path: Path) -> None:
    _, source = any_hub
    report = fetch(source(), MODEL, tmp_path / "models")
    record = json.loads((Path(report.path) / "fetch.json").read_text())
    assert (record["schema"], record["id"], record["source"]) == ("fetch/v1", MODEL, report.source)


@pytest.mark.parametrize(("source", "client"), [("hf", "huggingface_hub"), ("modelscope", "modelscope_hub")])
def test_an_environment_without_a_hub_s_client_is_told_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, client: str
) -> None:
    monkeypatch.setitem(sys.modules, client, None)  # importing it fails
    argv = ["fetch", "--source", source, "--id", MODEL, "--models", str(tmp_path)]
    with pytest.raises(PreflightError, match=f"--source {source} needs {client}; install it"):
        main(argv)
