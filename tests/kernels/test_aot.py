"""Each step from source to machine code, for both chips, and what happens when one of them cannot work."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cuda.tile", reason="cuda-tile, the kernels' front end, is not installed")

from kernels import aot
from kernels.sass import read_sass
from kernels.vector_add.cases import CASES, Case
from kernels.vector_add.kernel import SYMBOL, signature, vector_add

ROOT = Path(__file__).resolve().parents[2]
WHOLE = CASES[0]
SILENT = "failed to compile Tile IR program"


@pytest.fixture(scope="module")
def tools() -> aot.Tools:
    return aot.find_tools()


@pytest.fixture(scope="module")
def bytecode() -> bytes:
    return aot.compile_bytecode(vector_add, signature(WHOLE), "sm_90")


@pytest.fixture(scope="module")
def cubin(tools: aot.Tools, bytecode: bytes) -> bytes:
    return aot.compile_cubin(tools, bytecode, "sm_90")


@pytest.fixture
def old_toolkit(tmp_path: Path) -> Path:
    """A directory that looks like CUDA 13.0 to whoever asks its ptxas, and compiles nothing."""
    ptxas = tmp_path / "cuda-13.0" / "bin" / "ptxas"
    ptxas.parent.mkdir(parents=True)
    ptxas.write_text(
        '#!/bin/sh\necho "Cuda compilation tools, release 13.0, V13.0.88"\n[ "$1" = --version ]\n'
    )
    ptxas.chmod(0o755)
    return ptxas.parents[1]


@pytest.mark.parametrize("target", ["sm_90", "sm_121"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_kernel_reaches_machine_code_that_adds(tools: aot.Tools, case: Case, target: str) -> None:
    bytecode = aot.compile_bytecode(vector_add, signature(case), target)
    assert bytecode.startswith(b"\x7fTileIR\0")
    text = aot.disassemble_bytecode(tools, bytecode)
    assert f"entry @{SYMBOL}(" in text and "addf" in text and f"tensor_view<{case.elements}xf32" in text
    cubin = aot.compile_cubin(tools, bytecode, target)
    assert cubin.startswith(b"\x7fELF")
    facts = read_sass(aot.disassemble_cubin(tools, cubin))
    assert facts.target.rstrip("a") == target
    assert facts.functions == (SYMBOL,)
    assert facts.opcodes["FADD"] >= 2
    assert min(facts.global_load_bytes) >= case.access_bytes
    assert min(facts.global_store_bytes) >= case.access_bytes
    used = aot.resource_usage(tools, cubin, SYMBOL, facts)
    assert 1 <= used.registers <= 255
    assert (used.stack_bytes, used.local_bytes, used.spill_stores, used.spill_loads) == (0, 0, 0, 0)


def test_bytecode_names_no_directory_of_this_machine(bytecode: bytes) -> None:
    assert str(ROOT).encode() not in bytecode
    assert b"leanstack:kernels/vector_add" in bytecode


def test_bytecode_is_the_same_from_another_checkout_whatever_lies_below_the_working_directory(
    tmp_path: Path, bytecode: bytes
) -> None:
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    shutil.copytree(ROOT / "kernels", checkout / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    stranger = elsewhere / "kernels" / "vector_add" / "kernel.py"
    stranger.parent.mkdir(parents=True)
    stranger.write_text("raise SystemExit('the wrong source was read')\n" * 40)
    search = [str(checkout), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    program = (
        "import hashlib; from kernels import aot; from kernels.vector_add import cases, kernel;"
        "code = aot.compile_bytecode(kernel.vector_add, kernel.signature(cases.CASES[0]), 'sm_90');"
        "print(hashlib.sha256(code).hexdigest(), kernel.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=elsewhere,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(search),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    digest, source = done.stdout.split()
    assert source.startswith(str(checkout))
    assert digest == hashlib.sha256(bytecode).hexdigest()


def test_tools_are_found_with_an_empty_path(
    monkeypatch: pytest.MonkeyPatch, tools: aot.Tools, bytecode: bytes, cubin: bytes
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert aot.find_tools() == tools
    assert aot.compile_cubin(tools, bytecode, "sm_90") == cubin


@pytest.mark.parametrize("variable", aot.TOOLKIT_VARIABLES)
def test_an_older_toolkit_in_the_environment_is_kept_from_the_compiler_and_stays_in_ours(
    monkeypatch: pytest.MonkeyPatch,
    old_toolkit: Path,
    tools: aot.Tools,
    bytecode: bytes,
    cubin: bytes,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, str(old_toolkit))
    assert aot.compile_cubin(tools, bytecode, "sm_90") == cubin
    assert os.environ[variable] == str(old_toolkit)


@pytest.mark.parametrize("variable", aot.TOOLKIT_VARIABLES)
def test_an_older_toolkit_that_does_reach_the_compiler_fails_with_code_5_and_its_one_line(
    old_toolkit: Path, tools: aot.Tools, bytecode: bytes, variable: str
) -> None:
    uncleared = {**os.environ, variable: str(old_toolkit)}
    with pytest.raises(aot.StageFailed, match=SILENT) as caught:
        aot.compile_cubin(tools, bytecode, "sm_90", environment=uncleared)
    assert (caught.value.stage, caught.value.exit_code) == ("cubin", 5)


@pytest.mark.parametrize(
    "package, tool",
    [
        ("nvidia-cuda-tileiras", "tileiras"),
        ("nvidia-cuda-nvcc", "ptxas"),
        ("nvidia-nvvm", "libnvvm"),
        ("nvidia-cuda-cuobjdump", "cuobjdump"),
        ("nvidia-cuda-nvdisasm", "nvdisasm"),
    ],
)
def test_a_missing_package_is_named_with_its_tool_and_the_fix(
    monkeypatch: pytest.MonkeyPatch, package: str, tool: str
) -> None:
    real = importlib.metadata.distribution

    def without(name: str) -> importlib.metadata.Distribution:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "distribution", without)
    with pytest.raises(aot.ToolMissing, match=rf"{tool}.* is missing.*{package}.*pip install"):
        aot.find_tools()


def test_a_package_whose_tool_was_deleted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda self: self.name != "nvdisasm")
    with pytest.raises(aot.ToolMissing, match=r"nvdisasm is missing: .* is installed without it"):
        aot.find_tools()


def test_compiler_packages_of_two_releases_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.distribution

    class Older(importlib.metadata.PathDistribution):
        version = "13.3.27"

    def mixed(name: str) -> importlib.metadata.Distribution:
        found = real(name)
        return Older(found._path) if name == "nvidia-nvvm" else found

    monkeypatch.setattr(importlib.metadata, "distribution", mixed)
    with pytest.raises(aot.ToolMissing, match=r"different releases: .*nvidia-nvvm 13\.3\.27"):
        aot.find_tools()


def test_a_tool_that_cannot_be_started_is_a_missing_tool(tools: aot.Tools, tmp_path: Path) -> None:
    broken = tmp_path / "nvdisasm"
    broken.write_bytes(b"\x7fELF of another machine")
    broken.chmod(0o755)
    tool = aot.Tool(name="nvdisasm", path=broken, location="x", package="nvidia-cuda-nvdisasm", version="0")
    with pytest.raises(aot.ToolMissing, match="nvdisasm of nvidia-cuda-nvdisasm cannot be started"):
        aot.run_tool(tool, [], "sass")


def test_the_compiler_knows_the_contracts_chips(tools: aot.Tools) -> None:
    assert {"sm_90", "sm_121"} <= set(aot.supported_targets(tools))


def test_a_kernel_the_front_end_refuses_fails_in_the_bytecode_stage() -> None:
    whole = signature(WHOLE)
    short = type(whole)(whole.parameters[:2], whole.calling_convention, SYMBOL)
    with pytest.raises(aot.StageFailed, match="front end refused the kernel for sm_90") as caught:
        aot.compile_bytecode(vector_add, short, "sm_90")
    assert caught.value.stage == "bytecode"


def test_bytecode_that_is_none_fails_in_both_stages_that_read_it(tools: aot.Tools) -> None:
    with pytest.raises(aot.StageFailed, match=r"tileirdisasm .* failed") as caught:
        aot.disassemble_bytecode(tools, b"no bytecode")
    assert caught.value.stage == "tileir"
    with pytest.raises(aot.StageFailed, match=r"tileiras .* failed with code") as caught:
        aot.compile_cubin(tools, b"no bytecode", "sm_90")
    assert caught.value.stage == "cubin"


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage"])
def test_a_damaged_cubin_fails_in_the_sass_stage(tools: aot.Tools, cubin: bytes, damage: str) -> None:
    damaged = {"empty": b"", "truncated": cubin[: len(cubin) // 2], "garbage": bytes(range(256)) * 16}[damage]
    with pytest.raises(aot.StageFailed) as caught:
        aot.disassemble_cubin(tools, damaged)
    assert caught.value.stage == "sass"
    assert "nvdisasm" in str(caught.value)
    with pytest.raises(aot.StageFailed, match="cuobjdump"):
        aot.resource_usage(tools, damaged, SYMBOL, read_sass(aot.disassemble_cubin(tools, cubin)))


def test_resource_usage_of_another_symbol_is_refused(tools: aot.Tools, cubin: bytes) -> None:
    facts = read_sass(aot.disassemble_cubin(tools, cubin))
    with pytest.raises(aot.StageFailed, match="no function 'vector'"):
        aot.resource_usage(tools, cubin, "vector", facts)
