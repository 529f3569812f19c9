"""The precision gate: cells, records, comparison, binaries from elsewhere, and what fails beside the rest."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toolchain_fakes as fakes

pytest.importorskip("cuda.tile", reason="cuda-tile, the kernels' front end, is not installed")

from kernels import aot
from kernels.gate_probes.expected import expected, inputs, judge
from kernels.gate_probes.formats import decode, encode, pack, unpack
from kernels.gate_probes.probes import NOT_APPLICABLE, PRECISIONS, ROUTES, Wanted, probes
from lean.cli import run_program
from lean.errors import IntegrityError, PreflightError, UsageError
from lean.toolchain.__main__ import main
from lean.toolchain.gate import compile as gate_compile
from lean.toolchain.gate import launch
from lean.toolchain.gate.compile import Job, compile_probe
from lean.toolchain.gate.launch import GUARD, guarded, judged, run_probe, spoilt
from lean.toolchain.gate.run import Options, chosen, gate

ROOT = Path(__file__).resolve().parents[2]


def quiet(line: str) -> None:
    del line


def run(out: Path, gpu: Callable[[], dict[str, Any]] = fakes.no_gpu, **options: Any) -> dict[str, Any]:
    wanted = Options(out=out, seconds=2, **{"targets": ("sm_90",), **options})
    return gate(wanted, quiet, compile_probe=fakes.compile_probe, run_probe=fakes.run_probe, find=gpu)


def cells(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{cell['precision']}.{cell['route']}": cell for cell in record["cells"]}


def test_a_crash_a_hang_and_a_refusal_of_the_compiler_block_their_own_routes_only(tmp_path: Path) -> None:
    record = run(tmp_path, precisions=("bf16", "fp16", "tf32", "int8"), routes=("mma",))
    found = cells(record)
    assert found["bf16.mma"]["status"] == "compile-only"
    assert found["bf16.mma"]["why"] == "not run: no GPU: libcuda cannot be loaded"
    assert found["fp16.mma"]["why"] == "compiling it: its process died of signal 11 (SIGSEGV)"
    assert found["tf32.mma"]["why"] == "compiling it: it did not end within 2 s and was stopped"
    assert found["int8.mma"]["why"] == "int8: says no\n  at line 3"
    folder = tmp_path / record["run"]
    assert json.loads((folder / "gate.json").read_text()) == record
    assert (folder / found["bf16.mma"]["files"][2]["file"]).read_bytes() == b"bf16.mma"
    assert record["recommended"]["sm_90"]["primary"] == "bf16" and "error" not in record
    assert {"kernels/aot.py", "lean/toolchain/gate/run.py", "lean/toolchain/gate/launch.py"} <= set(
        record["sources"]
    )


def test_on_a_gpu_what_is_right_is_cleared_and_a_wrong_failed_or_hanging_launch_is_not(
    tmp_path: Path,
) -> None:
    record = run(
        tmp_path, fakes.an_h100, precisions=("bf16", "fp8-e4m3", "fp8-e5m2"), targets=("sm_90", "sm_121")
    )
    found = {(c["target"], f"{c['precision']}.{c['route']}"): c for c in record["cells"]}
    assert found["sm_90", "bf16.mma"]["status"] == "cleared"
    assert found["sm_90", "bf16.mma"]["limits"]["norm"] < 2.0**-15
    assert found["sm_90", "fp8-e4m3.mma"]["why"].startswith("it ran, but the result is off by 0.1")
    assert found["sm_90", "fp8-e5m2.mma"]["why"] == "cuStreamSynchronize failed"
    assert found["sm_90", "fp8-e5m2.weight-only"]["why"].startswith("running it: it did not end within 2 s")
    assert found["sm_90", "fp8-e5m2.weight-only-shift"]["status"] == "cleared"
    assert found["sm_121", "bf16.mma"]["why"] == "not run: this machine's GPU is sm_90"


def test_what_one_machine_compiled_another_runs_and_says_so(tmp_path: Path) -> None:
    here = run(tmp_path / "here", precisions=("bf16",))
    folder = tmp_path / "here" / here["run"]
    there = run(tmp_path / "there", fakes.an_h100, kernels=folder, targets=())
    assert cells(there)["bf16.mma"]["status"] == "cleared"
    assert there["compiled_by"]["run"] == here["run"] and there["tools"] == here["tools"]
    (folder / "03_cubin" / "bf16.mma.sm_90.cubin").write_bytes(b"other")
    with pytest.raises(IntegrityError, match="not the file that was compiled"):
        run(tmp_path / "there", fakes.an_h100, kernels=folder)
    with pytest.raises(UsageError, match="holds sm_90, not sm_121"):
        run(tmp_path / "there", kernels=tmp_path / "there" / there["run"], targets=("sm_121",))
    with pytest.raises(UsageError, match="no folder of a gate"):
        run(tmp_path / "there", kernels=tmp_path)


def test_a_record_says_what_changed_since_the_one_before(tmp_path: Path) -> None:
    first = run(tmp_path, precisions=("bf16",), routes=("mma",))
    assert first["changes"] == {"previous": None}
    document = tmp_path / first["run"] / "gate.json"
    document.write_text(json.dumps(first | {"tools": first["tools"] | {"cuda-tile": "1.6.0"}}))
    second = run(tmp_path, fakes.an_h100, precisions=("bf16",), routes=("mma", "elementwise"))
    changes = second["changes"]
    assert changes["previous"] == first["run"] != second["run"]
    assert changes["tools"] == {"cuda-tile": ["1.6.0", first["tools"]["cuda-tile"]]}
    (cell,) = changes["cells"]
    assert (cell["route"], cell["before"], cell["after"]) == ("mma", "compile-only", "cleared")
    assert changes["new_cells"] == 1


def test_unknown_words_and_an_unusable_gpu_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for options, message in (
        ({"precisions": ("fp3",)}, "--precision: fp3; expected some of bf16"),
        ({"routes": ("magic",)}, "--route: magic; expected some of elementwise"),
        ({"precisions": ("bf16",), "routes": ("weight-only",)}, "no such route: its weights are what"),
        ({"targets": ("sm_1",)}, "--target: tileiras does not know sm_1"),
        ({"previous": tmp_path / "none.json"}, "--previous: .*none.json: no gate/v1 record"),
    ):
        with pytest.raises(UsageError, match=message):
            run(tmp_path, **options)
    with pytest.raises(PreflightError, match="driver r570 is too old; or leave it out with --gpu none"):
        run(tmp_path, fakes.a_broken_gpu)
    with pytest.raises(PreflightError, match=r"its process died of signal 11.*leave it out with --gpu none"):
        run(tmp_path, fakes.a_gpu_that_crashes)
    assert list(tmp_path.iterdir()) == []


def test_a_half_installed_toolchain_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", fakes.without("nvidia-cuda-nvdisasm"))
    assert run_program(main, ["gate", "--out", str(tmp_path), "--gpu", "none"]) == 4
    shown = capsys.readouterr()
    assert "nvdisasm is missing: the package nvidia-cuda-nvdisasm is not installed; pip install" in shown.err
    assert json.loads(shown.out)["error"]["kind"] == "PreflightError"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tool", "script", "reached", "why"),
    [
        ("tileirdisasm", "exit 3", "01_bytecode", "failed with code 3 and said: nothing"),
        ("tileiras", "kill -SEGV $$", "02_tileir", "failed with signal 11"),
        ("tileiras", "echo no such tile >&2; exit 5", "02_tileir", "with code 5 and said: no such tile"),
        ("nvdisasm", "echo nothing", "03_cubin", "names no .target or holds no instruction"),
    ],
)
def test_a_tool_that_fails_blocks_the_probe_at_its_stage_with_its_own_words(
    tmp_path: Path, tool: str, script: str, reached: str, why: str
) -> None:
    tools = fakes.with_script(aot.find_tools(), tool, tmp_path, script)
    (probe,) = chosen(("bf16",), ("elementwise",))
    facts = compile_probe(Job(tools=tools, probe=probe, target="sm_90")).facts
    assert (facts["status"], facts["reached"]) == ("blocked", reached) and why in facts["why"]


def test_a_compilers_words_name_no_folder_of_the_machine_it_ran_on(tmp_path: Path) -> None:
    script = 'echo "$1: too big" >&2; exit 5'
    tools = fakes.with_script(aot.find_tools(), "tileiras", tmp_path, script)
    (probe,) = chosen(("bf16",), ("elementwise",))
    facts = compile_probe(Job(tools=tools, probe=probe, target="sm_90")).facts
    assert facts["why"].endswith("failed with code 5 and said: kernel.tilebc: too big")
    (probe,) = chosen(("nvfp4",), ("block-scaled-mma",))
    facts = compile_probe(Job(tools=tools, probe=probe, target="sm_90")).facts
    assert '"cuda/tile/_stub.py"' in facts["why"] and sys.prefix not in facts["why"]


def test_code_without_the_chips_own_instruction_is_blocked_and_says_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate_compile, "wanted", lambda probe, target: Wanted(opcode="QGMMA"))
    (probe,) = chosen(("bf16",), ("mma",))
    facts = compile_probe(Job(tools=aot.find_tools(), probe=probe, target="sm_90")).facts
    assert (facts["status"], facts["reached"]) == ("blocked", "04_sass")
    assert "holds no QGMMA; found: HGMMA.64x32x16.F32.BF16" in facts["why"]


def test_a_chip_without_any_precision_to_start_from_fails_the_gate_but_leaves_the_record(
    tmp_path: Path,
) -> None:
    wanted = Options(out=tmp_path, targets=("sm_90",), routes=("mma",), seconds=60)
    record = gate(wanted, quiet, compile_probe=fakes.compile_nothing, find=fakes.no_gpu)
    assert record["error"]["exit_code"] == 5
    assert record["error"]["message"] == "sm_90: no precision to start from: bf16: no; fp16: no"
    assert json.loads((tmp_path / record["run"] / "gate.json").read_text()) == record


def test_the_gpus_chip_is_asked_too_if_the_compiler_knows_it(tmp_path: Path) -> None:
    precision = {"precisions": ("bf16",), "routes": ("mma",), "targets": ()}
    assert run(tmp_path, fakes.an_h100, **precision)["targets"] == ["sm_121", "sm_90"]
    old = run(tmp_path, fakes.an_old_gpu, **precision)
    assert old["targets"] == ["sm_121", "sm_90"]
    assert cells(old)["bf16.mma"]["why"] == "not run: this machine's GPU is sm_70"


def test_a_write_outside_an_array_or_into_an_input_is_found_though_the_result_is_right() -> None:
    (probe,) = chosen(("bf16",), ("elementwise",))
    data = inputs(probe)
    left = {o.name: guarded(o, data.get(o.name)) for o in probe.operands}
    left["out"] = guarded(probe.operands[-1], fakes.right(probe))
    assert judged(probe, data, left)["status"] == "cleared"
    left["a"][GUARD] ^= 1
    left["out"][-1] = 0
    wrong = judged(probe, data, left)
    assert wrong["status"] == "blocked" and wrong["limits"]["within"]
    assert "a: an input was written" in wrong["why"] and "out: written outside the array" in wrong["why"]


def test_a_device_that_fails_is_the_drivers_own_words_and_a_worker_that_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise driver.DriverError("cuModuleLoadData: CUDA_ERROR_NO_BINARY_FOR_GPU")

    driver = pytest.importorskip("kernels.driver", reason="cuda-bindings is not installed")
    monkeypatch.setattr(driver, "open_device", fail)
    (probe,) = chosen(("bf16",), ("mma",))
    result = run_probe(launch.Job(probe=probe, cubin=b""))
    assert result["why"] == "cuModuleLoadData: CUDA_ERROR_NO_BINARY_FOR_GPU" and spoilt(result)


def test_a_machine_without_the_compiler_runs_what_was_carried_and_says_what_it_lacks(tmp_path: Path) -> None:
    here = run(tmp_path / "here", precisions=("bf16",))
    blocked = "cuda.tile", "torch", "yaml", "httpx"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name in {blocked!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )

    def gate_there(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lean.toolchain", "gate", "--out", str(tmp_path / "there"), *words],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"},
            capture_output=True,
            text=True,
        )

    folder = str(tmp_path / "here" / here["run"])
    done = gate_there("--kernels", folder, "--target", "sm_90")
    record = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert len(record["cells"]) == 3 and record["compiled_by"]["here"] is False
    assert record["gpu"]["status"] in ("no GPU", "used"), record["gpu"]  # looked for, with the driver alone
    done = gate_there("--gpu", "none")
    assert done.returncode == 4
    assert (
        "cuda.tile is missing, so nothing can be compiled here" in done.stderr and "--kernels" in done.stderr
    )


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"schema": "gate/v9"}, UsageError, "no folder of a gate: its schema is gate/v9"),
        ({"cells": [{"target": "sm_90"}]}, UsageError, "no folder of a gate: it lacks 'precision'"),
        ({"cells": "none"}, UsageError, "no folder of a gate: "),
        (
            {"sources": {"kernels/sass.py": "0"}},
            IntegrityError,
            "compiled from another kernels/aot.py, .*sass",
        ),
    ],
)
def test_a_carried_folder_that_is_not_what_a_gate_of_this_checkout_left_is_refused(
    tmp_path: Path, change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    here = run(tmp_path, precisions=("bf16",), routes=("mma",))
    folder = tmp_path / here["run"]
    (folder / "gate.json").write_text(json.dumps(here | change))
    with pytest.raises(kind, match=message):
        run(tmp_path / "there", kernels=folder)


def test_a_carried_folder_names_no_file_outside_it_and_lacks_what_it_was_not_asked(tmp_path: Path) -> None:
    here = run(tmp_path, precisions=("bf16",), routes=("mma",))
    folder = tmp_path / here["run"]
    with pytest.raises(UsageError, match=r"holds none of fp16\.mma; compile them"):
        run(tmp_path / "there", kernels=folder, precisions=("fp16",), routes=("mma",))
    here["cells"][0]["files"][0]["file"] = "03_cubin/.."
    (folder / "gate.json").write_text(json.dumps(here))
    with pytest.raises(UsageError, match=r"it names '03_cubin/\.\.'"):
        run(tmp_path / "there", kernels=folder)


def test_every_precision_and_route_is_asked_or_the_record_says_why_not() -> None:
    asked = {(probe.precision, probe.route) for probe in probes()}
    assert asked | set(NOT_APPLICABLE) == {(p, r) for p in PRECISIONS for r in ROUTES}
    assert not asked & set(NOT_APPLICABLE)


@pytest.mark.parametrize("probe", probes(), ids=lambda probe: probe.name)
def test_a_right_result_is_within_its_limits_and_one_off_by_a_part_in_fifty_is_not(probe: Any) -> None:
    want, got = expected(probe, inputs(probe)), fakes.right(probe)
    assert judge(probe, got, want)["within"]
    wrong = got.copy()
    wrong.flat[7] = encode(probe.operands[-1].dtype, np.array([want.flat[7] + np.abs(want).max() / 4 + 1]))[0]
    assert not judge(probe, wrong, want)["within"]


def test_number_formats_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch, whose formats these are compared with, is missing")
    codes = np.arange(256, dtype=np.uint8)
    for name, theirs in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        want = torch.from_numpy(codes.copy()).view(theirs).double().numpy()
        finite = np.isfinite(want)
        assert np.array_equal(decode(name, codes)[finite], want[finite])
        assert np.isnan(decode(name, codes)[~finite]).all()
    assert decode("e2m1", np.arange(8)).tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert decode("e8m0", np.array([126, 127, 128])).tolist() == [0.5, 1, 2]
    assert np.array_equal(unpack(pack(codes[None, :16])), codes[None, :16])


def test_real_compilers_give_the_instructions_and_refusals_that_are_known(tmp_path: Path) -> None:
    wanted = Options(
        out=tmp_path,
        targets=("sm_90", "sm_121"),
        precisions=("nvfp4",),
        routes=("block-scaled-mma",),
        gpu="none",
    )
    hopper, spark = gate(wanted, quiet)["cells"]
    assert (hopper["status"], hopper["reached"]) == ("blocked", None)
    assert "float4_e2m1fn is not supported on sm_90" in hopper["why"]
    assert (spark["status"], spark["reached"]) == ("compile-only", "05_instruction")
    assert spark["found"] == ["OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X"]
