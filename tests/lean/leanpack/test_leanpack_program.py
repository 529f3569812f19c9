"""`python -m lean.leanpack`, and what importing and opening cost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Any]

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: object) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-m", "lean.leanpack", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return done.returncode, json.loads(done.stdout), done.stderr


def test_the_program_builds_inspects_and_verifies(make_checkpoint: Make, tmp_path: Path) -> None:
    from lean.contracts import load_contract

    made = make_checkpoint(load_contract("tiny-cpu"))
    build = ["build", "--model", made.path, "--contract", "tiny-cpu", "--packs", tmp_path / "packs"]
    code, planned, _ = run(*build, "--manifest-only")
    assert (code, planned["built"]) == (0, False)
    assert not (tmp_path / "packs").exists()
    code, built, progress = run(*build)
    assert (code, built["built"]) == (0, True)
    assert "pack weights/layer-000.safetensors" in progress
    code, shown, _ = run("inspect", built["path"])
    assert (code, shown["lock"], shown["hashed"]) == (0, built["lock"], False)
    layout = [(tensor["name"], tensor["offset"]) for tensor in shown["manifest"]["tensors"]]
    assert layout == [(tensor["name"], tensor["offset"]) for tensor in planned["manifest"]["tensors"]]
    code, listed, _ = run("list", "--packs", tmp_path / "packs", "--contract", "tiny-cpu")
    assert (code, [entry["lock"] for entry in listed["packs"]]) == (0, [built["lock"]])
    code, verified, _ = run("verify", built["path"])
    assert (code, verified["lock"], verified["tensors"]) == (0, built["lock"], built["tensors"])
    shutil.rmtree(Path(built["path"]) / "tokenizer")
    code, failed, message = run("verify", built["path"])
    assert (code, failed["error"]["kind"]) == (8, "PackError")
    assert message.startswith("error: ")


@pytest.mark.parametrize("arguments", [(), ("build",), ("inspect",), ("frobnicate",)])
def test_wrong_arguments_end_with_the_code_for_usage(arguments: tuple[str, ...]) -> None:
    code, document, _ = run(*arguments)
    assert (code, document["error"]["kind"]) == (1, "UsageError")


def test_inspecting_does_not_read_the_weights(pack: Path) -> None:
    for file in (pack / "weights").iterdir():
        file.chmod(0o644)
        size = file.stat().st_size
        file.write_bytes(b"")
        os.truncate(file, size)  # nothing but holes
    assert run("inspect", pack)[0] == 0
    assert run("verify", pack)[0] == 8


def test_importing_and_opening_load_neither_torch_nor_kernels_and_little_memory(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    from lean.contracts import load_contract

    made = make_checkpoint(load_contract("tiny-cpu"))
    path = made.build(tmp_path / "packs").path
    code = (
        "import sys\n"
        "def anonymous():\n"
        "  return next(int(l.split()[1]) for l in open('/proc/self/status') if 'RssAnon' in l)\n"
        "from lean.leanpack import open_pack\n"
        "before = anonymous(); pack = open_pack(sys.argv[1]); after = anonymous()\n"
        "assert pack.verified\n"
        "print(sorted({'torch', 'kernels', 'safetensors'} & set(sys.modules)), after - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, cwd=ROOT, check=True
    )
    modules, grown = done.stdout.rsplit(" ", 1)
    assert modules == "[]"
    assert int(grown) < 6_000, "KiB; the pack has 10,000"
