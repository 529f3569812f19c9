"""Building packs: refusals, full disks, two builds at once; whole or nothing."""

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
import torch

from lean.errors import ContractError, PackError, PreflightError, UsageError
from lean.leanpack import open_pack, sealing
from lean.leanpack.listing import PackList, list_packs

Make = Callable[..., Any]

ROOT = Path(__file__).resolve().parents[3]


def test_building_again_changes_nothing(make_checkpoint: Make, tmp_path: Path) -> None:
    made = make_checkpoint()
    first = made.build(tmp_path / "packs")
    before = {path: path.stat().st_mtime_ns for path in Path(first.path).rglob("*")}
    second = made.build(tmp_path / "packs")
    assert (first.built, second.built) == (True, False)
    assert second.lock == first.lock
    assert {path: path.stat().st_mtime_ns for path in Path(first.path).rglob("*")} == before


def test_other_weights_make_another_pack_beside_the_first(make_checkpoint: Make, tmp_path: Path) -> None:
    one, other = make_checkpoint(folder="a", seed=1), make_checkpoint(folder="b", seed=2)
    paths = {one.build(tmp_path / "packs").path, other.build(tmp_path / "packs").path}
    assert len(paths) == 2
    assert all(open_pack(path).verified for path in paths)


def test_overwrite_builds_anew_to_the_same_lock(make_checkpoint: Make, tmp_path: Path) -> None:
    made = make_checkpoint()
    first = made.build(tmp_path / "packs")
    inode = os.stat(first.path).st_ino
    again = made.build(tmp_path / "packs", overwrite=True)
    assert (again.built, again.lock) == (True, first.lock)
    assert os.stat(again.path).st_ino != inode
    assert visible(tmp_path / "packs") == [Path(first.path).name]


def test_a_damaged_pack_in_the_way_is_named_and_overwrite_replaces_it(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    made = make_checkpoint()
    first = made.build(tmp_path / "packs")
    victim = Path(first.path) / "weights" / "output.safetensors"
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(PackError, match="--overwrite"):
        made.build(tmp_path / "packs")
    assert made.build(tmp_path / "packs", overwrite=True).lock == first.lock
    assert open_pack(first.path).lock == first.lock


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") or path.is_dir())


REFUSED: list[tuple[str, Callable[[Any], None], type[Exception], str]] = [
    (
        "geometry",
        lambda made: made.configure(hidden_size=64),
        ContractError,
        "geometry.hidden: contract says 48, checkpoint says 64",
    ),
    ("bias", lambda made: made.configure(attention_bias=True), ContractError, "attention_bias: True"),
    (
        "quantised",
        lambda made: made.configure(quantization_config={"bits": 4}),
        ContractError,
        "quantization_config",
    ),
    (
        "scaled rope",
        lambda made: made.configure(rope_parameters={"rope_type": "yarn"}),
        ContractError,
        "rope_type: yarn",
    ),
    (
        "rope list",
        lambda made: made.configure(rope_parameters=[1]),
        PackError,
        "rope_parameters: expected an object",
    ),
    (
        "no config",
        lambda made: (made.path / "config.json").unlink(),
        PackError,
        "config.json: cannot be opened",
    ),
    (
        "no tokenizer",
        lambda made: (made.path / "tokenizer.json").unlink(),
        PackError,
        "tokenizer.json is missing",
    ),
    (
        "no weights",
        lambda made: (made.path / "model.safetensors").rename(made.path / "pytorch_model.bin"),
        PackError,
        "model.safetensors is missing.*pytorch_model.bin.*never read",
    ),
    (
        "missing tensor",
        lambda made: drop(made, "model.norm.weight"),
        PackError,
        "model.norm.weight is missing",
    ),
    (
        "extra tensor",
        lambda made: put(made, "model.x.weight", torch.ones(2)),
        PackError,
        "'model.x.weight' does not",
    ),
    (
        "shape",
        lambda made: put(made, "model.norm.weight", torch.ones(47)),
        PackError,
        r"model.norm.weight: shape: expected \[48\], got \[47\]",
    ),
    (
        "F64",
        lambda made: put(made, "model.norm.weight", torch.ones(48, dtype=torch.float64)),
        PackError,
        "model.norm.weight: dtype: F64 cannot become bf16",
    ),
    (
        "NaN",
        lambda made: put(made, "model.norm.weight", torch.full((48,), torch.nan)),
        PackError,
        "model.norm.weight: holds an infinity or NaN",
    ),
    (
        "overflow",
        lambda made: put(made, "model.norm.weight", torch.full((48,), 3.4e38)),
        PackError,
        "model.norm.weight: holds an infinity or NaN",
    ),
    (
        "other head",
        lambda made: put(made, "lm_head.weight", torch.zeros(96, 48, dtype=torch.bfloat16)),
        PackError,
        "lm_head.weight differs",
    ),
]


def put(made: Any, name: str, tensor: torch.Tensor) -> None:
    made.tensors[name] = tensor
    made.write()


def drop(made: Any, name: str) -> None:
    del made.tensors[name]
    made.write()


@pytest.mark.parametrize(
    ("damage", "kind", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_an_unfit_checkpoint_is_refused_by_name_and_leaves_nothing(
    make_checkpoint: Make, tmp_path: Path, damage: Callable[[Any], None], kind: type[Exception], message: str
) -> None:
    made = make_checkpoint()
    damage(made)
    with pytest.raises(kind, match=message):
        made.build(tmp_path / "packs")
    assert visible(tmp_path / "packs") == []


def test_a_tied_checkpoint_may_store_its_head_twice(make_checkpoint: Make, tmp_path: Path) -> None:
    made = make_checkpoint()
    put(made, "lm_head.weight", made.tensors["model.embed_tokens.weight"].clone())
    assert open_pack(made.build(tmp_path / "packs").path).manifest.aliases == {"head": "embedding"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": "nvfp4"}, "encoding: the contract says bf16, not nvfp4"),
        ({"target": "cpu,tpu"}, "target: 'tpu' is no target; expected cpu or a chip such as sm_90"),
        ({"target": " ,"}, "target: expected cpu or a chip"),
        ({"seed": 1}, "one of --model and --random"),
        ({"model": None, "seed": -1}, "--random: expected a seed from 0"),
    ],
)
def test_what_cannot_be_built_is_said(
    make_checkpoint: Make, tmp_path: Path, changes: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_checkpoint().build(tmp_path / "packs", **changes)


@pytest.fixture
def small_disk(tmp_path: Path, mount_small_disk: Callable[[Path, int], Path]) -> Path:
    return mount_small_disk(tmp_path / "small", 256)


def test_a_full_disk_is_noticed_before_a_byte_is_written(make_checkpoint: Make, small_disk: Path) -> None:
    with pytest.raises(PreflightError, match=rf"needs \d+ bytes and {small_disk} has \d+ free"):
        make_checkpoint().build(small_disk)
    assert visible(small_disk) == []


@pytest.mark.fault("disk full (data)", "pack")
def test_a_disk_that_fills_up_half_way_leaves_nothing(
    make_checkpoint: Make, contract_of: Make, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "check_space", lambda *_: None)
    big = dataclasses.replace(contract_of().model.geometry, vocab=4096)
    with pytest.raises(PreflightError, match="is full; make room"):
        make_checkpoint(contract_of(big)).build(small_disk)
    assert visible(small_disk) == []


def test_a_folder_that_cannot_be_made_is_a_preflight_error(make_checkpoint: Make, tmp_path: Path) -> None:
    (tmp_path / "packs").write_text("a file")
    with pytest.raises(PreflightError, match="packs cannot be written"):
        make_checkpoint().build(tmp_path / "packs")


HOLDER = "import sys; from pathlib import Path; from lean.files.exclusive import hold\n"
HOLDER += "with hold(Path(sys.argv[1]), 'x'):\n  print('held', flush=True)\n  sys.stdin.read()\n"


@pytest.mark.fault("two at once", "pack")
def test_of_two_builds_one_is_refused_and_names_the_other(make_checkpoint: Make, tmp_path: Path) -> None:
    made = make_checkpoint()
    lock = tmp_path / "packs" / ".tiny-cpu.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(PreflightError, match=f"already being written by process {other.pid} "):
            made.build(tmp_path / "packs")
        assert visible(tmp_path / "packs") == []
        other.kill()
    assert other.returncode == -signal.SIGKILL
    assert made.build(tmp_path / "packs").built, "the lock went with the process that held it"


@pytest.mark.fault("two at once", "pack")
def test_two_builds_at_once_leave_one_sound_pack(
    make_checkpoint: Make, contract_of: Make, tmp_path: Path
) -> None:
    from lean.contracts import load_contract

    made = make_checkpoint(load_contract("tiny-cpu"))
    argv = [
        sys.executable,
        "-m",
        "lean.leanpack",
        "build",
        "--model",
        str(made.path),
        "--contract",
        "tiny-cpu",
    ]
    argv += ["--packs", str(tmp_path / "packs")]
    running = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) for _ in range(3)
    ]
    answers = [(json.loads(process.communicate()[0]), process.returncode) for process in running]
    assert any(document.get("built") for document, _ in answers)
    for document, code in answers:
        assert code == 0 or (code == 4 and "process" in document["error"]["message"])
    (name,) = visible(tmp_path / "packs")
    assert open_pack(tmp_path / "packs" / name).verified


@pytest.mark.fault("kill -9 of the writer", "pack")
def test_what_a_killed_build_left_is_cleared_by_the_next(make_checkpoint: Make, tmp_path: Path) -> None:
    staging = tmp_path / "packs" / ".tiny-cpu.staging"
    staging.mkdir(parents=True)
    (staging / "half").write_bytes(bytes(10))
    report = make_checkpoint().build(tmp_path / "packs")
    assert visible(tmp_path / "packs") == [Path(report.path).name]


@pytest.mark.fault("source changes under way", "pack")
def test_a_checkpoint_that_changes_meanwhile_is_refused(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_checkpoint()
    original = sealing.write_weight_file

    def meddle(*arguments: Any) -> Any:
        os.utime(made.path / "model.safetensors", ns=(1, 1))
        return original(*arguments)

    monkeypatch.setattr(sealing, "write_weight_file", meddle)
    with pytest.raises(PackError, match=r"model.safetensors: changed while it was being packed"):
        made.build(tmp_path / "packs")
    assert visible(tmp_path / "packs") == []


def test_listing_shows_packs_oldest_first_and_says_what_is_damaged(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    packs = tmp_path / "packs"
    assert list_packs(packs) == PackList(packs=(), damaged=())
    paths = [make_checkpoint(folder=name, seed=i).build(packs).path for i, name in enumerate("abc")]
    for age, path in enumerate(reversed(paths)):
        os.utime(Path(path) / "LOCK", ns=(age, age))
    (packs / ".tiny-cpu.staging").mkdir()
    (packs / ".tiny-cpu.staging" / "LOCK").write_text("half")
    (packs / "notes").mkdir()
    (Path(paths[0]) / "manifest.json").unlink()
    found = list_packs(packs)
    assert [entry.path for entry in found.packs] == [paths[2], paths[1]]
    (damaged,) = found.damaged
    assert damaged.startswith(f"{paths[0]}: manifest.json is missing")
    assert list_packs(packs, "another-contract").packs == ()
