"""Pack directories with links, pipes, strangers, cuts and flipped bytes in them."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from lean.errors import PackError
from lean.leanpack import open_pack, read_manifest

LAYER = "weights/layer-000.safetensors"


def link(pack: Path) -> None:
    inner = pack / "tokenizer" / "tokenizer.json"
    outer = pack.parent / "elsewhere.json"
    shutil.move(inner, outer)
    inner.symlink_to(outer)


def link_folder(pack: Path) -> None:
    shutil.move(pack / "weights", pack.parent / "elsewhere")
    (pack / "weights").symlink_to(pack.parent / "elsewhere")


def pipe(pack: Path) -> None:
    (pack / LAYER).unlink()
    os.mkfifo(pack / LAYER)


def listen(pack: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(pack, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{folder}/s")
        os.close(folder)


def rewrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


ENTRIES = {
    "link": (link, "tokenizer.json: is a symbolic link"),
    "linked folder": (link_folder, "weights: is a symbolic link"),
    "dangling link": (
        lambda p: (p / "tokenizer" / "x.json").symlink_to("nowhere"),
        "x.json: is a symbolic link",
    ),
    "FIFO": (pipe, "layer-000.safetensors: is a FIFO"),
    "FIFO for LOCK": (lambda p: ((p / "LOCK").unlink(), os.mkfifo(p / "LOCK")), "LOCK: is a FIFO"),
    "socket": (listen, "s: is a socket"),
    "folder for a file": (
        lambda p: ((p / LAYER).unlink(), (p / LAYER).mkdir()),
        "layer-000.safetensors: is missing",
    ),
    "surplus file": (
        lambda p: (p / "tokenizer" / "x.json").write_text("{}"),
        "x.json: does not belong into this pack",
    ),
    "surplus pickle": (
        lambda p: (p / "weights" / "x.bin").write_text("x"),
        "x.bin: does not belong into this pack",
    ),
    "hidden file": (lambda p: (p / ".x").write_text("x"), "unsafe file name '.x'"),
    "newline in a name": (lambda p: (p / "a\nb").write_text("x"), r"unsafe file name 'a\\nb'"),
    "deep folder": (lambda p: (p / "a/b/c/d/e").mkdir(parents=True), "unsafe file name"),
    "missing file": (lambda p: (p / LAYER).unlink(), "layer-000.safetensors: is missing"),
    "missing manifest": (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
    "missing LOCK": (lambda p: (p / "LOCK").unlink(), "LOCK is missing"),
    "empty": (
        lambda p: [shutil.rmtree(x) if x.is_dir() else x.unlink() for x in p.iterdir()],
        "LOCK is missing",
    ),
    "short LOCK": (lambda p: rewrite(p / "LOCK", b"00"), "LOCK: expected 64 hexadecimal digits"),
    "long LOCK": (lambda p: rewrite(p / "LOCK", b"0" * 66), "LOCK: 66 bytes"),
    "upper case LOCK": (
        lambda p: rewrite(p / "LOCK", (p / "LOCK").read_bytes().upper()),
        "LOCK: expected 64",
    ),
    "other LOCK": (lambda p: rewrite(p / "LOCK", b"0" * 64 + b"\n"), "its LOCK begins with 00000000"),
}


@pytest.mark.parametrize(("damage", "message"), ENTRIES.values(), ids=ENTRIES)
def test_an_odd_directory_is_refused_naming_the_entry(
    pack: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(pack)
    with pytest.raises(PackError, match=message):
        open_pack(pack)
    with pytest.raises(PackError, match=message):
        read_manifest(pack)


def test_a_renamed_pack_whose_lock_matches_by_nothing_but_name_is_refused(pack: Path, tmp_path: Path) -> None:
    stranger = pack.rename(tmp_path / "tiny-cpu-00000000")
    with pytest.raises(PackError, match="the directory is named 00000000"):
        open_pack(stranger)
    assert open_pack(stranger.rename(tmp_path / "my-pack")).verified, "a name without a hash claims nothing"


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 4095, 4096, 4097, 0.5, -1])
def test_a_truncated_file_is_refused_wherever_it_was_cut(pack: Path, keep: float) -> None:
    for name in [LAYER, "weights/output.safetensors", "tokenizer/tokenizer.json", "manifest.json"]:
        path = pack / name
        whole = path.read_bytes()
        size = int(len(whole) * keep) if keep == 0.5 else int(keep) % len(whole)
        os.truncate(path, size)
        with pytest.raises(PackError, match=re.escape(name)):
            open_pack(pack)
        path.write_bytes(whole)
    assert open_pack(pack).verified


def test_any_single_changed_byte_is_found(pack: Path) -> None:
    draw = random.Random(11)
    names = sorted(path.relative_to(pack).as_posix() for path in pack.rglob("*") if path.is_file())
    for name in names:
        size = (pack / name).stat().st_size
        places = range(size) if size <= 65 else {0, 7, 8, size - 1, *draw.sample(range(size), 24)}
        for place in places:
            flip = draw.randrange(1, 256)
            with (pack / name).open("r+b") as file:
                file.seek(place)
                before = file.read(1)
                file.seek(place)
                file.write(bytes([before[0] ^ flip]))
            with pytest.raises(PackError):
                open_pack(pack)
            with (pack / name).open("r+b") as file:
                file.seek(place)
                file.write(before)
    assert open_pack(pack).verified
