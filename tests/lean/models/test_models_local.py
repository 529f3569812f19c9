"""A local directory as a source, and probing what a directory holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lean.contracts import load_contract
from lean.errors import PackError, PreflightError, TransferError, UsageError
from lean.leanpack.snapshot import read_snapshot
from lean.models import directory
from lean.models.directory import DirectorySource
from lean.models.fetch import fetch
from lean.models.listing import list_snapshots
from lean.models.probe import probe

MODEL = "acme/tiny"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two shards, an index, a configuration, a tokenizer, and things that are never taken."""
    folder = tmp_path / "model"
    folder.mkdir()
    for i in (1, 2):
        save_file({f"t{i}": np.ones((i, 3), np.float32)}, folder / f"model-0000{i}-of-00002.safetensors")
    weight_map = {f"t{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {"model_type": "qwen3", "hidden_size": 8, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")
    return folder


def test_a_directory_is_copied_and_pinned_by_its_content(model: Path, tmp_path: Path) -> None:
    first = fetch(DirectorySource(path=model), MODEL, tmp_path / "models")
    assert first.refused == ("pytorch_model.bin",)
    assert first.downloaded == 5
    record = read_snapshot(Path(first.path))
    assert record is not None
    assert not any(file.hub_verified for file in record.files), "no hub vouched for a local directory"
    assert fetch(DirectorySource(path=model), MODEL, tmp_path / "models").downloaded == 0
    (model / "config.json").write_text("{}")
    assert fetch(DirectorySource(path=model), MODEL, tmp_path / "models").revision != first.revision


def test_metadata_alone_has_the_revision_of_the_whole(model: Path, tmp_path: Path) -> None:
    source = DirectorySource(path=model)
    some = fetch(source, MODEL, tmp_path / "models", allow=("*.json",))
    whole = fetch(source, MODEL, tmp_path / "models")
    assert (some.path, some.downloaded, whole.downloaded) == (whole.path, 3, 2)


def test_links_among_the_files_are_refused_and_others_ignored(model: Path, tmp_path: Path) -> None:
    (model / "notes").symlink_to("/etc/passwd")
    fetch(DirectorySource(path=model), MODEL, tmp_path / "models")
    (model / "vocab.json").symlink_to("/etc/passwd")
    with pytest.raises(PackError, match=r"vocab\.json: is a symbolic link"):
        fetch(DirectorySource(path=model), MODEL, tmp_path / "models")
    (model / "vocab.json").unlink()
    os.mkfifo(model / "vocab.json")
    with pytest.raises(PackError, match=r"vocab\.json: is a FIFO"):
        fetch(DirectorySource(path=model), MODEL, tmp_path / "models")


def test_a_file_that_changes_between_hash_and_copy_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = directory.hash_files

    def hash_then_change(root: Path, names: Any) -> Any:
        hashed = original(root, names)
        (model / "tokenizer.json").write_text("[]")
        return hashed

    monkeypatch.setattr(directory, "hash_files", hash_then_change)
    with pytest.raises(TransferError, match=r"tokenizer\.json: sha256 is [0-9a-f]{64}, the source says"):
        fetch(DirectorySource(path=model), MODEL, tmp_path / "models")
    assert not list((tmp_path / "models").glob("*/*/fetch.json"))


@pytest.fixture
def small_disk(tmp_path: Path, mount_small_disk: Callable[[Path, int], Path]) -> Path:
    return mount_small_disk(tmp_path / "small", 1536)


@pytest.mark.fault("disk full (data)", "fetch")
def test_a_full_disk_is_named_before_or_while_copying(
    model: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"t1": np.ones((512, 1024), np.float32)}, model / "model-00001-of-00002.safetensors")
    with pytest.raises(PreflightError, match=r"needs \d+ bytes and .* has \d+ free"):
        fetch(DirectorySource(path=model), MODEL, small_disk)
    monkeypatch.setattr("lean.models.fetch.check_space", lambda *_: None)
    with pytest.raises(PreflightError, match="is full; make room"):
        fetch(DirectorySource(path=model), MODEL, small_disk)
    assert not list(small_disk.glob("*/*/fetch.json"))


def test_a_directory_without_a_model_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"nothing matches \*\.safetensors"):
        fetch(DirectorySource(path=tmp_path / "empty"), MODEL, tmp_path / "models")
    with pytest.raises(UsageError, match="no such directory"):
        fetch(DirectorySource(path=tmp_path / "nowhere"), MODEL, tmp_path / "models")


def test_probing_reports_shards_sizes_and_types(model: Path) -> None:
    report = probe(model)
    assert report.complete
    assert [(shard.name[:11], shard.tensors, shard.dtypes) for shard in report.present] == [
        ("model-00001", 1, ("F32",)),
        ("model-00002", 1, ("F32",)),
    ]
    assert report.bytes == sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert (report.tensors, report.pickles, report.tokenizer) == (2, ("pytorch_model.bin",), True)
    assert (report.snapshot, report.match) == (None, None)


def test_probing_names_a_missing_shard_and_a_missing_tensor(model: Path) -> None:
    (model / "model-00002-of-00002.safetensors").unlink()
    report = probe(model)
    assert (report.missing, report.complete) == (("model-00002-of-00002.safetensors",), False)
    save_file({"other": np.ones(3, np.float32)}, model / "model-00002-of-00002.safetensors")
    report = probe(model)
    assert (report.missing, report.unnamed_tensors, report.complete) == ((), ("t2",), False)


def test_probing_compares_with_a_contract_and_names_both_values(model: Path) -> None:
    match = probe(model, load_contract("tiny-cpu")).match
    assert match is not None
    assert not match.fits
    assert "geometry.hidden: contract says 256, checkpoint says 8" in match.mismatches
    assert "geometry.vocab: contract says 4096, checkpoint says nothing" in match.mismatches


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", '{"a": NaN}', "config.json: NaN is not a JSON number"),
        ("config.json", "[]", "config.json: expected a JSON object"),
        ("model.safetensors.index.json", '{"weight_map": {"t": "../x.safetensors"}}', "unsafe file name"),
        ("model-00001-of-00002.safetensors", "short", "model-00001-of-00002.safetensors: truncated"),
        ("fetch.json", "{}", "fetch.json: schema: expected 'fetch/v1'"),
        ("fetch.json", '{"schema": "fetch/v1", "schema": "x"}', "fetch.json: duplicate key 'schema'"),
    ],
)
def test_probing_refuses_malformed_files_by_name(model: Path, name: str, text: str, message: str) -> None:
    (model / name).write_text(text)
    with pytest.raises(PackError) as caught:
        probe(model)
    assert message in str(caught.value)


def run(*arguments: object) -> tuple[int, dict[str, Any]]:
    argv = [sys.executable, "-m", "lean.models", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, json.loads(done.stdout)


def test_the_program_fetches_and_probes(model: Path, tmp_path: Path) -> None:
    local = ["fetch", "--source", "local", "--id", MODEL, "--models", tmp_path / "models"]
    code, report = run(*local, "--path", model)
    assert (code, report["downloaded"]) == (0, 5)
    code, found = run("probe", report["path"], "--contract", "tiny-cpu")
    assert (code, found["snapshot"]["revision"]) == (0, report["revision"])
    assert found["match"]["fits"] is False
    code, listed = run("list", "--models", tmp_path / "models", "--id", MODEL)
    assert (code, [entry["path"] for entry in listed["snapshots"]]) == (0, [report["path"]])
    code, failed = run(*local)
    assert (code, failed["error"]["kind"]) == (1, "UsageError")


def test_a_pack_refuses_a_snapshot_that_is_not_what_its_record_says(model: Path, tmp_path: Path) -> None:
    from lean.leanpack.checkpoint import Checkpoint
    from lean.leanpack.source import describe_source

    path = Path(fetch(DirectorySource(path=model), MODEL, tmp_path / "models").path)
    with Checkpoint(path) as checkpoint:
        source = describe_source(checkpoint)
        assert (source.kind, source.id, len(source.files)) == ("local", MODEL, 5)
        (path / "tokenizer.json").write_text("[]")
        with pytest.raises(PackError, match=r"tokenizer\.json: not what fetch\.json recorded"):
            describe_source(checkpoint)


def test_listing_shows_complete_snapshots_oldest_first(model: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert list_snapshots(models).snapshots == ()
    source = DirectorySource(path=model)
    fetch(source, MODEL, models, allow=("*.json",))
    assert list_snapshots(models).snapshots == (), "a metadata preflight is no model"
    paths = [fetch(source, MODEL, models).path]
    (model / "tokenizer.json").write_text("[]")
    paths.append(fetch(source, MODEL, models).path)
    fetch(source, "acme/other", models)
    for path, completed in zip(paths, ("2026-02", "2026-01"), strict=True):
        record = Path(path) / "fetch.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"completed": completed}))
    assert [entry.path for entry in list_snapshots(models, MODEL).snapshots] == paths[::-1]
    assert len(list_snapshots(models).snapshots) == 3
    (Path(paths[0]) / "fetch.json").write_text("{}")
    found = list_snapshots(models, MODEL)
    assert [entry.path for entry in found.snapshots] == [paths[1]]
    assert "fetch.json: schema" in found.damaged[0]
