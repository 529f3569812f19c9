"""Sharded checkpoints that lead astray."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lean.errors import PackError
from lean.leanpack.checkpoint import Checkpoint

SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
Make = Callable[..., Any]


def reindex(path: Path, tensor: str, shard: Any) -> None:
    index = json.loads((path / INDEX).read_text())
    index["weight_map"][tensor] = shard
    (path / INDEX).write_text(json.dumps(index))


def move_tensor(path: Path) -> None:
    index = json.loads((path / INDEX).read_text())["weight_map"]
    name = next(tensor for tensor, shard in index.items() if shard == SHARD)
    reindex(path, name, SHARD.replace("00002-", "00001-", 1))


def swap_for_link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


CHECKPOINTS: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "shard leaves",
        lambda p: reindex(p, "model.norm.weight", "../x.safetensors"),
        "unsafe file name '../x.safetensors'",
    ),
    (
        "absolute shard",
        lambda p: reindex(p, "model.norm.weight", "/x.safetensors"),
        "unsafe file name '/x.safetensors'",
    ),
    ("pickle shard", lambda p: reindex(p, "model.norm.weight", "x.bin"), "'x.bin', not a .safetensors file"),
    ("shard of another type", lambda p: reindex(p, "model.norm.weight", 7), "'7', not a .safetensors file"),
    ("missing shard", lambda p: (p / SHARD).unlink(), f"shard {SHARD} is missing"),
    ("linked shard", lambda p: swap_for_link(p / SHARD), f"{SHARD}: is a symbolic link"),
    ("FIFO shard", lambda p: ((p / SHARD).unlink(), os.mkfifo(p / SHARD)), f"{SHARD}: is a FIFO"),
    ("wrong shard", lambda p: move_tensor(p), "not where the index says"),
    ("absent tensor", lambda p: reindex(p, "ghost", SHARD), "'ghost': named by the index, in no shard"),
    ("no weight map", lambda p: (p / INDEX).write_text("{}"), "weight_map: expected an object"),
    ("index list", lambda p: (p / INDEX).write_text("[]"), "expected a JSON object"),
    ("config NaN", lambda p: (p / "config.json").write_text('{"hidden_size": NaN}'), "config.json: NaN"),
    (
        "config twice",
        lambda p: (p / "config.json").write_text('{"a": 1, "a": 1}'),
        "config.json: duplicate key",
    ),
    ("config link", lambda p: swap_for_link(p / "config.json"), "config.json: is a symbolic link"),
]


@pytest.mark.parametrize(
    ("damage", "message"), [row[1:] for row in CHECKPOINTS], ids=[row[0] for row in CHECKPOINTS]
)
def test_a_hostile_sharded_checkpoint_is_refused(
    make_checkpoint: Make, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    made = make_checkpoint(shards=2)
    damage(made.path)
    with pytest.raises(PackError, match=message):
        made.build(tmp_path / "packs")
    assert [path for path in (tmp_path / "packs").iterdir() if path.is_dir()] == []


def test_one_tensor_in_two_shards_is_refused(make_checkpoint: Make) -> None:
    made = make_checkpoint(shards=2)
    shutil.copy(made.path / SHARD, made.path / "model-00003.safetensors")
    reindex(made.path, "ghost", "model-00003.safetensors")
    with pytest.raises(PackError, match=f"also in {SHARD}"):
        Checkpoint(made.path)
