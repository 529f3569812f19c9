"""The precision gate: cells, records, comparison, binaries from elsewhere, and what fails beside the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toolchain_fakes as fakes

pytest.importorskip("cuda.tile", reason="cuda-tile, the kernels' front end, is not installed")

from kernels.gate_probes.expected import expected, inputs, judge
from kernels.gate_probes.formats import decode, encode, pack, unpack
from kernels.gate_probes.probes import NOT_APPLICABLE, PRECISIONS, ROUTES, probes
from lean.errors import IntegrityError, PreflightError, UsageError
from lean.toolchain.gate import Options, gate


def quiet(line: str) -> None:
    del line


def run(out: Path, gpu: Callable[[], dict[str, Any]] = fakes.no_gpu, **options: Any) -> dict[str, Any]:
    wanted = Options(out=out, seconds=2, **{"targets": ("sm_90",), **options})
    return gate(wanted, quiet, compile_probe=fakes.compile_probe, run_probe=fakes.run_probe, find_gpu=gpu)


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
    assert list(tmp_path.iterdir()) == []


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
