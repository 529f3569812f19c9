"""The folder of binaries that a proof is run from, made by the real compiler."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("cuda.tile", reason="cuda-tile, the kernels' front end, is not installed")
pytest.importorskip("torch", reason="torch, which the references are written in, is not installed")

from lean.cli import run_program
from lean.errors import UsageError
from lean.toolchain.__main__ import main
from lean.toolchain.built import read_build
from lean.toolchain.proof.build import Options, build
from lean.toolchain.shapes import specs_of

TARGET = "sm_121"


def others(*kept: str) -> tuple[str, ...]:
    return tuple(f"tiny/{spec.name}" for spec in specs_of("tiny", TARGET) if spec.name not in kept)


def test_a_build_as_typed_is_read_back_kernel_by_kernel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skip = ",".join(others("greedy.rows", "embedding.one"))
    argv = ["build", "--out", str(tmp_path / "b"), "--target", TARGET, "--sizes", "tiny", "--skip", skip]
    assert run_program(main, argv) == 0
    assert json.loads(capsys.readouterr().out)["kernels"] == 2
    index, kernels = read_build(tmp_path / "b", TARGET)
    assert [kernel.spec.name for kernel in kernels] == ["embedding.one", "greedy.rows"]
    assert all(kernel.cubin.startswith(b"\x7fELF") for kernel in kernels)
    assert index["kernels"][0]["resources"]["spill_stores"] == 0
    assert set(index["tools"]) == {"nvidia-cuda-tileiras", "nvidia-cuda-nvcc"}


def test_a_folder_with_something_in_it_or_an_unknown_chip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("")
    with pytest.raises(UsageError, match="is not empty"):
        build(Options(out=tmp_path, target=TARGET, sizes=("tiny",)), print)
    with pytest.raises(UsageError, match="does not know sm_1"):
        build(Options(out=tmp_path / "x", target="sm_1", sizes=("tiny",)), print)
