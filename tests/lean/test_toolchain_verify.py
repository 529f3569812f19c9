"""`python -m lean.toolchain verify`: what it proves, what it leaves behind, and how it fails."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

for needed in ("cuda.tile", "cuda.bindings"):
    pytest.importorskip(needed, reason=f"{needed}, part of the compile chain, is not installed")

from kernels import aot, driver  # noqa: E402
from kernels.vector_add.cases import CASES  # noqa: E402
from lean.cli import run_program  # noqa: E402
from lean.errors import PreflightError, UsageError  # noqa: E402
from lean.host_facts import TOOLKIT_VARIABLES  # noqa: E402
from lean.toolchain import surroundings  # noqa: E402
from lean.toolchain.__main__ import main  # noqa: E402
from lean.toolchain.probe import run_folder  # noqa: E402
from lean.toolchain.verify.run import Options, verify  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
UNSET = {name: value for name, value in os.environ.items() if name not in TOOLKIT_VARIABLES}


def run_verb(*argv: str, first: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the program as typed, with `first` at the head of the packages' search path."""
    search = [str(first), str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return subprocess.run(
        [sys.executable, "-P", "-m", "lean.toolchain", *argv],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def old_toolkit(tmp_path: Path) -> Path:
    ptxas = tmp_path / "cuda-13.0" / "bin" / "ptxas"
    ptxas.parent.mkdir(parents=True)
    ptxas.write_text(
        '#!/bin/sh\necho "Cuda compilation tools, release 13.0, V13.0.88"\n[ "$1" = --version ]\n'
    )
    ptxas.chmod(0o755)
    return ptxas.parents[1]


def quiet(line: str) -> None:
    del line


def quick(out: Path) -> Options:
    """One case for one target."""
    return Options(out=out, targets=("sm_90",), cases=CASES[:1])


def test_verify_as_typed_compiles_for_both_chips_and_leaves_every_stage_behind(tmp_path: Path) -> None:
    done = run_verb("verify", "--out", str(tmp_path), "--gpu", "none")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    (run,) = tmp_path.iterdir()
    assert run.name == printed["run"]
    assert json.loads((run / "probe.json").read_text()) == printed
    assert sorted(entry.name for entry in run.iterdir()) == [
        "01_bytecode", "02_tileir", "03_cubin", "04_sass", "logs", "probe.json",
    ]  # fmt: skip
    stages = [(stage["stage"], stage["case"], stage["target"]) for stage in printed["stages"]]
    folders = ("01_bytecode", "02_tileir", "03_cubin", "04_sass")
    assert stages == [
        (folder, case.name, target) for target in ("sm_121", "sm_90") for case in CASES for folder in folders
    ]
    for stage in printed["stages"]:
        data = (run / stage["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (stage["bytes"], stage["sha256"])
    sass = [stage for stage in printed["stages"] if stage["stage"] == "04_sass"]
    assert {stage["inspected"]["target"] for stage in sass} == {"sm_121a", "sm_90a"}
    assert all(
        stage["inspected"]["opcodes"]["FADD"] >= 2 and stage["resources"]["registers"] for stage in sass
    )
    assert printed["status"] == "compile-only"
    assert printed["gpu"] == {"requested": "none", "status": "not run", "reason": "left out with --gpu none"}
    assert all(tool["path"].startswith("nvidia/") and len(tool["sha256"]) == 64 for tool in printed["tools"])
    everything = done.stdout + "".join(
        p.read_bytes().decode("latin-1") for p in run.rglob("*") if p.is_file()
    )
    assert str(ROOT) not in everything and str(Path.home()) + "/" not in everything
    assert "03_cubin vector_add.whole.sm_121:" in done.stderr


def no_gpu() -> Any:
    raise driver.NoDriver("libcuda cannot be loaded")


def test_without_a_gpu_auto_says_compile_only_and_never_passed(tmp_path: Path) -> None:
    probe = verify(quick(tmp_path), os.environ, quiet, open_device=no_gpu)
    assert probe["status"] == "compile-only"
    assert probe["gpu"]["status"] == "no GPU"
    assert probe["gpu"]["reason"] == "no GPU: compile-only. libcuda cannot be loaded"
    assert {stage["stage"] for stage in probe["stages"]} == {
        "01_bytecode",
        "02_tileir",
        "03_cubin",
        "04_sass",
    }


class FakeArray:
    def __init__(self, data: Any) -> None:
        self.data = data

    def first(self, count: int) -> FakeArray:
        return self

    def download(self) -> Any:
        return self.data


class FakeGpu:
    """A GPU whose kernel is `left`, which writes into the poisoned output."""

    def __init__(self, sm: str, left: Any = lambda out, a, b: np.add(a, b, out=out[: a.size])) -> None:
        self.facts = driver.DeviceFacts(
            ordinal=0, name="Fake", sm=sm, cuda="13.0", memory_bytes=1 << 30, multiprocessors=1, unified=False
        )
        self.left = left
        self.closed = False

    def __enter__(self) -> FakeGpu:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def upload(self, data: Any) -> FakeArray:
        return FakeArray(data.copy())

    def load(self, cubin: bytes) -> Any:
        return SimpleNamespace(kernel=lambda symbol: symbol)

    def launch(self, kernel: str, *, grid: Any, arguments: Any) -> None:
        a, b, out = arguments
        self.left(out.data, a.data, b.data)


def runs(probe: dict[str, Any]) -> list[str]:
    return [f"{stage['case']}.{stage['target']}" for stage in probe["stages"] if stage["stage"] == "05_run"]


def test_on_a_gpu_only_its_own_target_is_run_and_the_status_is_passed(tmp_path: Path) -> None:
    gpu = FakeGpu("sm_90")
    probe = verify(Options(out=tmp_path), os.environ, quiet, open_device=lambda: gpu)
    assert runs(probe) == ["whole.sm_90", "tail.sm_90"] and gpu.closed
    assert (probe["status"], probe["gpu"]["status"]) == ("passed", "passed")
    ran = [stage for stage in probe["stages"] if stage["stage"] == "05_run"]
    assert [run["elements"] for run in ran] == [case.elements for case in CASES]
    assert all(0 < run["max_relative_error"] <= run["relative_tolerance"] for run in ran)


def test_a_gpu_whose_chip_was_not_asked_for_is_compiled_for_too(tmp_path: Path) -> None:
    probe = verify(quick(tmp_path), os.environ, quiet, open_device=lambda: FakeGpu("sm_120"))
    assert runs(probe) == ["whole.sm_120"]
    assert probe["targets"] == ["sm_90", "sm_120"]
    assert probe["gpu"]["target_added"] == "sm_120"


def test_a_gpu_the_compiler_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        PreflightError, match=r"GPU Fake is sm_75, which tileiras .* does not compile for .*--gpu none"
    ):
        verify(Options(out=tmp_path), os.environ, quiet, open_device=lambda: FakeGpu("sm_75"))
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_cannot_be_used_is_a_failure_and_not_a_skip(tmp_path: Path) -> None:
    def old() -> Any:
        raise driver.DriverTooOld("the NVIDIA driver offers CUDA 12.8")

    with pytest.raises(PreflightError, match=r"the GPU cannot be used: .*CUDA 12\.8"):
        verify(Options(out=tmp_path), os.environ, quiet, open_device=old)


def wrong(out: Any, a: Any, b: Any) -> None:
    out[: a.size] = a + b
    out[5] += 2 * np.spacing(out[5])


def unwritten(out: Any, a: Any, b: Any) -> None:
    out[: a.size - 1] = (a + b)[:-1]


def past_end(out: Any, a: Any, b: Any) -> None:
    out[: a.size] = a + b
    out[a.size] = 0.0


@pytest.mark.parametrize(
    "left, words",
    [
        (wrong, "largest relative error"),
        (unwritten, "1 elements never"),
        (past_end, "1 written past the end"),
    ],
)
def test_a_wrong_result_ends_in_the_gate_s_exit_code_with_the_evidence_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: Any, words: str
) -> None:
    gpu = FakeGpu("sm_90", left)
    assert run_program(lambda _: verify(quick(tmp_path), os.environ, quiet, open_device=lambda: gpu), []) == 5
    probe = json.loads(capsys.readouterr().out)
    assert (probe["status"], probe["gpu"]["status"], probe["stages"][-1]["status"]) == ("failed",) * 3
    assert words in probe["error"]["message"]
    (run,) = tmp_path.iterdir()
    assert json.loads((run / "probe.json").read_text())["error"] == probe["error"]


def test_a_launch_that_fails_is_a_failed_gate(tmp_path: Path) -> None:
    def fault(out: Any, a: Any, b: Any) -> None:
        raise driver.CudaError(
            "cuStreamSynchronize", "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access"
        )

    probe = verify(quick(tmp_path), os.environ, quiet, open_device=lambda: FakeGpu("sm_90", fault))
    assert (probe["status"], probe["gpu"]["status"]) == ("failed", "failed")
    assert (
        "05_run vector_add.whole.sm_90: cuStreamSynchronize failed with CUDA_ERROR_ILLEGAL"
        in probe["error"]["message"]
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"sass": ("HMMA",)}, "no HMMA"),
        ({"access_bytes": 16}, "a global load of 8 bytes per thread where 16 are expected"),
    ],
)
def test_machine_code_without_what_the_case_demands_fails_the_gate(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    case = replace(CASES[0], **change)
    probe = verify(replace(quick(tmp_path), gpu="none", cases=(case,)), os.environ, quiet)
    assert probe["error"]["exit_code"] == 5
    assert words in probe["error"]["message"]
    assert probe["stages"][-1]["status"] == "failed"
    log = tmp_path / probe["run"] / probe["stages"][-1]["log"]
    assert words in log.read_text()


@pytest.mark.parametrize("target", ["sm_7", "sm_90,cpu", ","])
def test_an_unknown_target_is_a_usage_error_beside_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    assert run_program(main, ["verify", "--out", str(tmp_path), "--target", target]) == 1
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert "--target" in message and "sm_121" in message
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tool_is_a_preflight_failure_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.metadata.distribution

    def without(name: str) -> importlib.metadata.Distribution:
        if name == "nvidia-cuda-nvdisasm":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "distribution", without)
    assert run_program(main, ["verify", "--out", str(tmp_path), "--gpu", "none"]) == 4
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert "nvdisasm is missing" in message and "pip install 'nvidia-cuda-nvdisasm" in message
    assert list(tmp_path.iterdir()) == []


def test_a_tool_that_does_not_start_is_a_preflight_failure_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvdisasm").write_text("not a program")
    found = aot.find_tools()
    broken = replace(found.nvdisasm, path=tmp_path / "nvdisasm")
    monkeypatch.setattr(aot, "find_tools", lambda: replace(found, nvdisasm=broken))
    with pytest.raises(PreflightError, match="nvdisasm of nvidia-cuda-nvdisasm cannot be started"):
        verify(replace(quick(tmp_path / "out"), gpu="none"), os.environ, quiet)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("verb", "package"),
    [
        (("verify",), "cuda"),
        (("build", "--target", "sm_90"), "cuda"),
        (("prove", "--kernels", "nowhere"), "torch"),
    ],
)
def test_a_python_without_a_verb_s_packages_is_a_preflight_failure_with_the_fix(
    tmp_path: Path, verb: tuple[str, ...], package: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-m", "lean.toolchain", *verb, "--out", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 4, done.stderr
    message = json.loads(done.stdout)["error"]["message"]
    assert message.startswith(f"the Python package {package}") and "pip install" in message


@pytest.mark.parametrize("variable", TOOLKIT_VARIABLES)
def test_an_older_toolkit_in_the_environment_is_reported_and_does_no_harm(
    tmp_path: Path, old_toolkit: Path, variable: str
) -> None:
    environment = {**UNSET, variable: str(old_toolkit)}
    probe = verify(replace(quick(tmp_path), gpu="none"), environment, quiet)
    assert probe["status"] == "compile-only"
    assert probe["toolkit_variables"] == [
        {"name": variable, "release": "13.0", "older": True, "cleared_for_the_compiler": True}
    ]


@pytest.mark.parametrize("variable", TOOLKIT_VARIABLES)
def test_an_older_toolkit_that_reaches_the_compiler_is_named_as_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old_toolkit: Path, variable: str
) -> None:
    monkeypatch.setattr(aot, "clean_environment", lambda environment=os.environ: dict(environment))
    environment = {**UNSET, variable: str(old_toolkit)}
    probe = verify(replace(quick(tmp_path), gpu="none"), environment, quiet)
    message = probe["error"]["message"]
    assert probe["error"]["exit_code"] == 5
    assert message.startswith("03_cubin vector_add.whole.sm_90: tileiras")
    assert "failed with code 5 and said: error: failed to compile Tile IR program" in message
    assert f"Cause: {variable} points at a CUDA toolkit of release 13.0" in message
    assert "Fix: `unset CUDA_HOME CUDA_PATH`" in message


def test_a_toolkit_of_the_compiler_s_release_is_not_blamed(old_toolkit: Path) -> None:
    ptxas = old_toolkit / "bin" / "ptxas"
    ptxas.write_text(ptxas.read_text().replace("13.0", "13.4"))
    (variable,) = surroundings.toolkit_variables({"CUDA_HOME": str(old_toolkit)})
    assert (variable.release, variable.older) == ("13.4", False)
    explained = surroundings.explain_compile_failure(
        f"x: {surroundings.SILENT_FAILURE}", {"CUDA_HOME": str(old_toolkit)}
    )
    assert "Cause" not in explained and "reinstall" in explained


def test_the_compiler_is_kept_from_the_variables_that_are_reported() -> None:
    assert aot.TOOLKIT_VARIABLES == TOOLKIT_VARIABLES


def test_a_toolkit_that_is_not_there_is_blamed_as_unknown() -> None:
    environment = {"CUDA_PATH": "/nonexistent/cuda"}
    (variable,) = surroundings.toolkit_variables(environment)
    assert (variable.release, variable.older) == (None, False)
    explained = surroundings.explain_compile_failure(f"x: {surroundings.SILENT_FAILURE}", environment)
    assert "CUDA_PATH points at a CUDA toolkit of release unknown" in explained


def test_a_foreign_kernels_package_in_front_of_ours_is_named(tmp_path: Path) -> None:
    foreign = tmp_path / "site" / "kernels"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("")
    metadata = tmp_path / "site" / "kernels-0.11.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.11.0\n")
    (metadata / "top_level.txt").write_text("kernels\n")
    done = run_verb("verify", "--out", str(tmp_path / "out"), first=tmp_path / "site")
    assert done.returncode == 4, done.stderr
    message = json.loads(done.stdout)["error"]["message"]
    assert "foreign" in message and "distribution kernels" in message and "PYTHONPATH" in message


def test_a_foreign_kernels_package_behind_ours_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"kernels": ["leanstack", "kernels"], "numpy": ["numpy"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    assert surroundings.foreign_kernels() == ("kernels",)
    surroundings.check_kernels_package()


def test_an_output_directory_that_cannot_be_made_is_a_preflight_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match="give a writable --out"):
        verify(replace(quick(tmp_path / "file" / "out"), gpu="none"), os.environ, quiet)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PreflightError, match="No space left on device"):
        verify(replace(quick(tmp_path), gpu="none"), os.environ, quiet)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_in_one_second_get_two_directories(tmp_path: Path) -> None:
    started = datetime(2026, 7, 25, 12, 0, 0, tzinfo=UTC)
    names = []
    for _ in range(2):
        with run_folder(tmp_path, started) as (name, _folder):
            names.append(name)
    assert names == ["20260725T120000Z", "20260725T120000Z-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("argv", [[], ["verify"], ["verify", "--out", "x", "--gpu", "maybe"], ["prove"]])
def test_a_wrong_command_line_is_one_json_document_and_exit_code_1(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(main, argv) == 1
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == UsageError.__name__
