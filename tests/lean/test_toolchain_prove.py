"""The proof of compiled kernels: what it accepts, and that it catches each kind of wrong kernel."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch, which the references are written in, is not installed")

from torch import Tensor  # noqa: E402

from kernels.case import Case, Draw, Expected, Tolerance, cases_of  # noqa: E402
from kernels.encodings import ENCODINGS  # noqa: E402
from kernels.spec import Array, KernelSpec  # noqa: E402
from lean.errors import GateError, IntegrityError, PreflightError, UsageError  # noqa: E402
from lean.toolchain.built import Kernel, read_build  # noqa: E402
from lean.toolchain.chip.judge import judge  # noqa: E402
from lean.toolchain.chip.machine import open_gpu  # noqa: E402
from lean.toolchain.chip.memory import GUARD, bits  # noqa: E402
from lean.toolchain.chip.trial import run_case  # noqa: E402
from lean.toolchain.proof.prove import covered_operations, prove  # noqa: E402
from lean.toolchain.proof.record import unproven, write_record  # noqa: E402
from lean.toolchain.shapes import sizes_named, specs_of  # noqa: E402
from lean.toolchain.sources import hashed_sources, imported  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TARGET = "sm_121"
SPECS = {spec.name: spec for spec in specs_of("tiny", TARGET)}
Spoil = Callable[[dict[str, Tensor], dict[str, Expected], Case], None]


class Fake:
    """Computes what each case expects, rounded to the arrays' types, then spoils it."""

    def __init__(self, spoil: Spoil | None = None) -> None:
        self.device = torch.device("cpu")
        self.facts = {"name": "no GPU", "sm": TARGET}
        self._spoil = spoil

    def load(self, spec: KernelSpec, cubin: bytes) -> Any:
        return spec

    def run(self, kernel: Any, spec: KernelSpec, case: Case, tensors: Sequence[Tensor]) -> None:
        arrays = dict(zip((array.name for array in spec.arrays), tensors, strict=True))
        expected = case.expected({name: tensor.clone() for name, tensor in arrays.items()})
        for name, wanted in expected.items():
            new = wanted.value.to(arrays[name].dtype)
            arrays[name].copy_(new if wanted.where is None else torch.where(wanted.where, new, arrays[name]))
        if self._spoil:
            self._spoil(arrays, expected, case)


def run(name: str, spoil: Spoil | None = None, case: str | None = None) -> list[str]:
    spec = SPECS[name]
    kernel = Kernel(sizes="tiny", spec=spec, cubin=b"")
    found: list[str] = []
    for one in cases_of(spec):
        if case is None or one.name.startswith(case):
            found += run_case(Fake(spoil), spec, kernel, one, {})["problems"]
    return found


@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_kernel_that_computes_what_its_cases_expect_passes(name: str) -> None:
    assert run(name) == []


def test_a_result_that_is_off_is_caught() -> None:
    def spoil(arrays: dict[str, Tensor], expected: dict[str, Expected], case: Case) -> None:
        arrays["out"] *= 1.0001

    (first, *_) = run("qkv.one", spoil)
    assert first.startswith("out: row 0 is off by 0.0001 of its norm")


def test_one_wrong_element_is_caught() -> None:
    def spoil(arrays: dict[str, Tensor], expected: dict[str, Expected], case: Case) -> None:
        arrays["out"][3, 17] += 0.05

    assert any("an element is off by" in line for line in run("gate_up.rows", spoil))


def test_an_element_left_unwritten_is_caught() -> None:
    def spoil(arrays: dict[str, Tensor], expected: dict[str, Expected], case: Case) -> None:
        bits(arrays["z"])[5, 7] = -1

    assert any(line == "z: 1 elements are NaN" for line in run("embedding.rows", spoil))


def test_an_integer_left_unwritten_is_caught_though_the_poison_is_its_value() -> None:
    poison: list[int] = []

    def spoil(arrays: dict[str, Tensor], expected: dict[str, Expected], case: Case) -> None:
        if not bool(arrays["positions"][3] >= 0):  # what was chosen for the slot that is not live is -1
            arrays["chosen"][3] = -1 if not poison else 0x7F7F7F7F
            poison.append(1)

    assert any("unwritten" in line for line in run("greedy.rows", spoil, "random 8 in order"))


@pytest.mark.parametrize("place", [-1, 0])
def test_a_store_outside_an_array_is_caught_on_both_sides(place: int) -> None:
    def spoil(arrays: dict[str, Tensor], expected: dict[str, Expected], case: Case) -> None:
        out = arrays["out"]
        whole = torch.empty(0, dtype=out.dtype).set_(out.untyped_storage())
        start = GUARD // out.element_size()
        whole[start - 1 if place else start + out.numel()] = 1.0

    assert "out: written past its end" in run("output.one".replace("output", "qkv"), spoil, "random")


def test_scratch_that_decides_the_result_is_caught() -> None:
    def spoil(arrays: dict[str, Tensor], expected: dict[str, Expected], case: Case) -> None:
        if not bool(arrays["split_acc"].isnan().any()):
            arrays["out"][0] += arrays["split_acc"][0, :, 0].nan_to_num().sign().to(arrays["out"].dtype)

    assert any("another run left other bits" in line for line in run("attention.rows8", spoil))


def test_a_row_that_reads_its_neighbour_is_caught() -> None:
    def spoil(arrays: dict[str, Tensor], expected: dict[str, Expected], case: Case) -> None:
        arrays["residual"][0] += arrays["residual"][1].nan_to_num() * 1e-7

    assert "residual: row 0 depends on its neighbours" in run("down.rows", spoil)


def test_a_weight_or_a_cache_row_that_is_written_is_caught() -> None:
    def weight(arrays: dict[str, Tensor], expected: dict[str, Expected], case: Case) -> None:
        arrays["weight"].view(-1)[0] = 7.0

    def cache(arrays: dict[str, Tensor], expected: dict[str, Expected], case: Case) -> None:
        arrays["keys"][6, 0, 100] = 7.0

    assert "weight: 1 elements written that are not its to write" in run("head.rows", weight)
    assert any(line.startswith("keys: 128 elements written") for line in run("append.prompt64", cache))


def test_a_zero_row_must_come_out_zero() -> None:
    want = Expected(value=torch.zeros(2, 4), tolerance=Tolerance(norm=1.0, element=1.0, reason="any"))
    assert judge(torch.zeros(2, 4), want).problems == ()
    assert judge(torch.tensor([[0.0] * 4, [0.0, 0.0, 1e-9, 0.0]]), want).problems


def test_infinity_where_a_number_belongs_is_caught() -> None:
    want = Expected(value=torch.ones(1, 4), tolerance=Tolerance(norm=1.0, element=1.0, reason="any"))
    assert judge(torch.tensor([[1.0, float("inf"), 1.0, 1.0]]), want).problems


def test_inputs_are_the_same_for_everyone_and_differ_between_seeds() -> None:
    array = Array(name="x", dtype="bf16", shape=(4, 8))
    one, same, other = (Draw(seed, torch.device("cpu")).normal(array) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


# The folder of a build, and the probe.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_build(tmp_path / "build", ("argmax.rows", "greedy.rows"))


def write_build(folder: Path, names: Sequence[str]) -> Path:
    (folder / "tiny").mkdir(parents=True)
    entries = []
    for name in names:
        file = folder / "tiny" / f"{name}.cubin"
        file.write_bytes(name.encode())
        entries.append(
            {
                "sizes": "tiny",
                "kernel": name,
                "file": f"tiny/{name}.cubin",
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "resources": {},
            }
        )
    index = {"target": TARGET, "tools": {}, "sources": hashed_sources(TARGET), "kernels": entries}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_a_passed_run_covers_every_file_that_its_kernels_are_made_of(folder: Path) -> None:
    probe = prove(folder, Fake(), lambda line: None)
    assert (probe["schema"], probe["status"], probe["gpu"]["status"]) == (
        "toolchain-probe/v1",
        "passed",
        "passed",
    )
    assert probe["operations"] == ["rmsnorm_head_argmax"]
    paths = {source["path"] for source in probe["sources"]}
    assert paths >= {
        "kernels/rmsnorm_head_argmax/kernel.py",
        "kernels/rmsnorm_head_argmax/cases.py",
        "kernels/products.py",
        "kernels/case.py",
        "kernels/qwen3/specs.py",
        "kernels/tiles.py",
    }
    assert "kernels/attention/kernel.py" not in paths
    json.dumps(probe, allow_nan=False)


def test_a_passed_run_is_a_record_until_something_its_kernels_import_changes(
    folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "kernels", root / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "kernels"]):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(root), *identity, *command], check=True)
    file = tmp_path / "probe.json"
    file.write_text(json.dumps(prove(folder, Fake(), lambda line: None)))
    done = write_record(file, host="h100", root=root)
    assert not done["dirty"] and "kernels/case.py" in done["covered"]
    name = "kernels/rmsnorm_head_argmax/kernel.py"
    assert not any(line.startswith(name) for line in unproven(root))
    with (root / "kernels/products.py").open("a") as source:  # whose helpers it imports
        source.write("\n")
    assert any(line.startswith(f"{name}: it or its cases.py changed") for line in unproven(root))


def test_a_machine_without_a_gpu_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(PreflightError, match="no GPU to prove kernels on"):
        open_gpu()


def test_an_operation_of_which_one_function_did_not_run_is_not_covered(tmp_path: Path) -> None:
    probe = prove(write_build(tmp_path / "build", ("argmax.rows", "last")), Fake(), lambda line: None)
    assert probe["operations"] == []
    assert probe["not_covered"]["rmsnorm_head_argmax"] == ["argmax_choose"]
    bf16 = [Kernel(sizes="tiny", spec=spec, cubin=b"") for spec in SPECS.values()]
    assert set(covered_operations(bf16)[1]) == {
        *("output_residual", "rmsnorm_gate_up_silu", "rmsnorm_qkv", "widen"),
    }
    coded = [spec for name in ENCODINGS[1:] for spec in specs_of(f"tiny+{name}", TARGET)]
    every = [*bf16, *(Kernel(sizes="tiny", spec=spec, cubin=b"") for spec in coded)]
    assert covered_operations(every)[1] == {}


def test_a_failed_run_says_so_everywhere_and_ends_with_the_gate_s_code(folder: Path) -> None:
    def spoil(arrays: dict[str, Tensor], expected: dict[str, Expected], case: Case) -> None:
        if "best" in expected:
            arrays["best"][0, 0] += 1.0

    probe = prove(folder, Fake(spoil), lambda line: None)
    assert (probe["status"], probe["gpu"]["status"]) == ("failed", "failed")
    assert "tiny argmax.rows" in probe["error"]["message"] and probe["error"]["exit_code"] == 5


def test_a_fault_ends_the_run_and_names_kernel_and_case(folder: Path) -> None:
    class Faulty(Fake):
        def run(self, *arguments: Any) -> None:
            raise GateError("CUDA_ERROR_ILLEGAL_ADDRESS")

    probe = prove(folder, Faulty(), lambda line: None)
    assert probe["status"] == "failed" and probe["cases"] == []
    assert "tiny argmax.rows random 1 in order: CUDA_ERROR" in probe["error"]["message"]


def test_an_altered_binary_and_a_build_of_other_sources_are_refused(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_bytes())
    (folder / "tiny" / "greedy.rows.cubin").write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"greedy\.rows\.cubin: not the file that was compiled"):
        read_build(folder, TARGET)
    index["sources"]["kernels/qwen3/specs.py"] = "0" * 64
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match=r"compiled from another kernels/qwen3/specs\.py"):
        read_build(folder, TARGET)


def test_a_build_for_another_chip_or_without_the_geometry_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is for sm_121, the GPU is sm_90"):
        read_build(folder, "sm_90")
    with pytest.raises(UsageError, match="no kernels of 4b"):
        read_build(folder, TARGET, ["4b"])
    with pytest.raises(UsageError, match="no build"):
        read_build(tmp_path, TARGET)
    with pytest.raises(UsageError, match="expected some of tiny"):
        sizes_named("8b")


def test_a_source_s_imports_are_followed_through_modules() -> None:
    paths = {
        path.relative_to(ROOT).as_posix() for path in imported(ROOT, [ROOT / "kernels/sampling/cases.py"])
    }
    assert paths >= {
        "kernels/rmsnorm_head_argmax/cases.py",
        "kernels/spec.py",
        "kernels/sampling/reference.py",
    }
