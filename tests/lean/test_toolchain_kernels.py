"""The hot-kernel bench, on a machine whose clock runs by bytes: what it measures, and what it refuses."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch, which the references are written in, is not installed")

from speed_fakes import GBS, LAUNCH_S, TORCH_S, Clockwork, hotter  # noqa: E402

from kernels.spec import KernelSpec  # noqa: E402
from lean.cli import run_program  # noqa: E402
from lean.errors import IntegrityError, PreflightError, UsageError  # noqa: E402
from lean.toolchain.__main__ import main  # noqa: E402
from lean.toolchain.chip import machine  # noqa: E402
from lean.toolchain.records import keep  # noqa: E402
from lean.toolchain.sources import hashed_sources  # noqa: E402
from lean.toolchain.speed import bench as kernel_bench_module  # noqa: E402
from lean.toolchain.speed import limits  # noqa: E402
from lean.toolchain.speed.bench import Options, kernel_bench  # noqa: E402
from lean.toolchain.speed.binaries import (  # noqa: E402
    CUBIN,
    Binaries,
    Binary,
    digest,
    folder_shapes,
    read_folder,
    specs_for,
    write_folder,
)
from lean.toolchain.speed.contract_shapes import ContractShapes, read_shapes, shapes_document  # noqa: E402
from lean.toolchain.speed.operations import OPERATIONS, is_rotated, operations  # noqa: E402
from lean.toolchain.speed.rotation import copies_for  # noqa: E402

TARGET = "sm_90"
TINY = read_shapes("tiny-cpu")
H100 = read_shapes("qwen3-4b-base-bf16-h100")
USED = {"registers": 32, "shared_bytes": 0, "stack_bytes": 0, "spill_stores": 0, "spill_loads": 0}


def built(shapes: ContractShapes = TINY, target: str = TARGET) -> Binaries:
    kernels = {
        spec.name: Binary(
            spec=spec,
            stages={"01_bytecode": b"b", CUBIN: spec.name.encode(), "04_sass": b"s"},
            resources=USED,
        )
        for spec in specs_for(shapes, target)
    }
    sources = hashed_sources(target)
    return Binaries(kernels=kernels, tools={"tileiras": "1"}, compiled_by={"here": True}, sources=sources)


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.matrix_rate, "__defaults__", (64,))


def bench(
    tmp_path: Path, machine: Clockwork, only: str = "", rows: tuple[int, ...] = (), torch_too: bool = True
) -> dict[str, Any]:
    names = tuple(only.split(",")) if only else ()
    options = Options(out=tmp_path / "out", only=names, rows=rows, torch=torch_too)
    return kernel_bench(options, TINY, built(), machine, lambda line: None)


def test_the_4b_contract_has_every_operation_on_its_exact_shapes() -> None:
    found, left_out = operations(H100.sizes, specs_for(H100, TARGET), H100.position)
    assert [(o.name, o.rows) for o in found] == [
        (name, rows)
        for rows in (1, 2, 4, 8, 64, 1024)
        for name in OPERATIONS
        if rows <= 8 or name != "head_argmax"
    ]
    kernels = {o.label: o.kernels for o in found}
    assert kernels["qkv M=1"] == ("qkv.one",) and kernels["down M=4"] == ("down.rows",)
    assert kernels["attention M=2"] == ("attention.rows2",)
    assert kernels["attention M=1024"] == ("append.prompt1024", "attention.prompt1024")
    assert kernels["head_argmax M=8"] == ("head.rows", "argmax.rows", "greedy.rows")
    assert "fused" in left_out["rmsnorm"]


def test_bytes_are_weights_once_seen_keys_and_the_rows_that_count() -> None:
    found, _ = operations(H100.sizes, specs_for(H100, TARGET), H100.position)
    by_label = {o.label: o for o in found}
    down = by_label["down M=1"]
    weight, x, residual, hidden = 2 * 2560 * 9728, 2 * 9728, 4 * 2560, 2 * 2560
    assert down.bytes_moved == weight + x + residual + hidden
    assert down.flops == 2 * 2560 * 9728
    attention = by_label["attention M=4"]
    assert attention.flops == 4 * (4 * 193) * 32 * 128
    assert 4 * 193 * 8 * 128 * 2 * 2 < attention.bytes_moved < 1.05 * 4 * 193 * 8 * 128 * 2 * 2
    assert by_label["attention M=1024"].flops == 4 * (1024 * 1025 // 2) * 32 * 128


@pytest.mark.parametrize("touched", [1, 1000, 50 << 20, 149 << 20, 800 << 20])
def test_a_round_of_copies_reads_what_no_cache_holds_and_a_graph_is_long_enough(touched: int) -> None:
    least = 150 << 20
    copies, rounds = copies_for(touched, least)
    assert copies * touched >= least and (copies - 1) * touched < least
    assert copies * rounds >= (4 if touched >= least else 32)


def test_every_launch_takes_the_next_copy_of_its_weights_and_the_same_activations(tmp_path: Path) -> None:
    machine = Clockwork()
    machine.cache_bytes = 1 << 20
    bench(tmp_path, machine, only="output", rows=(1,))
    launches = machine.recorded[-1]
    x, weight, residual, _ = zip(*(one.pointers for one in launches), strict=True)
    copies = len(set(weight))
    assert copies * launches[0].spec.arrays[1].nbytes >= 3 * machine.cache_bytes
    assert len(set(x)) == len(set(residual)) == 1
    assert all(a != b for a, b in itertools.pairwise(weight))
    ordered = sorted(set(weight))
    assert all(b - a >= launches[0].spec.arrays[1].nbytes for a, b in itertools.pairwise(ordered))


def test_cached_keys_rotate_by_the_slots_that_are_live(tmp_path: Path) -> None:
    machine = Clockwork()
    machine.cache_bytes = 1 << 20
    done = bench(tmp_path, machine, only="attention", rows=(2,))
    (found,) = done["operations"]
    launches = machine.recorded[-1]
    keys = [one.pointers[5] for one in launches]
    slot_bytes = launches[0].spec.arrays[5].nbytes // 8
    assert keys[1] - keys[0] == 2 * slot_bytes
    assert found["rotated_bytes"] >= done["least_rotated_bytes"] == 3 * machine.cache_bytes
    assert found["position"] == TINY.position


def test_a_whole_run_has_every_figure_of_every_operation(tmp_path: Path) -> None:
    done = bench(tmp_path, Clockwork())
    assert (done["schema"], done["status"], done["whole"]) == ("kernel-bench/v1", "passed", True)
    json.dumps(done, allow_nan=False)
    reading = done["limits"]["read_bandwidth"]
    assert 0.5 * GBS < reading["gbs"] < GBS and len(reading["samples_us"]) == 11
    assert done["limits"]["matrix_rate"]["tflops"] > 0
    for found in done["operations"]:
        assert found["status"] == found["torch"]["status"] == "measured", found
        assert len(found["samples_us"]) == len(found["torch"]["samples_us"]) == 11
        assert found["min_us"] <= found["median_us"] <= found["max_us"]
        assert found["torch"]["median_us"] == pytest.approx(1e6 * TORCH_S, rel=1e-3)
        assert found["ratio"] == pytest.approx(1e6 * TORCH_S / found["median_us"], rel=1e-3)
        assert found["gbs"] == pytest.approx(found["bytes_moved"] / found["median_us"] / 1e3, abs=0.01)
        assert found["percent_of_bound"] == pytest.approx(
            100 * found["bound_us"] / found["median_us"], rel=0.05, abs=0.05
        )
        assert found["error"] is not None and found["error"] < 0.05
        assert found["rotated_bytes"] >= done["least_rotated_bytes"]
    assert set(done["sources"]) >= {"kernels/rmsnorm_qkv/kernel.py", "profiles/contracts/tiny-cpu.yaml"}
    timing = [f"speed/{name}" for name in ("rotation", "operations", "peer", "limits")]
    timing += [f"chip/{name}" for name in ("pace", "judge", "trial", "memory", "machine")]
    assert set(done["sources"]) >= {f"lean/toolchain/{name}.py" for name in timing}
    assert done["pace"] == {"samples": 11, "seconds": 0.01}


def test_an_operation_takes_the_time_of_all_its_launches(tmp_path: Path) -> None:
    machine = Clockwork()
    (found,) = bench(tmp_path, machine, only="head_argmax", rows=(1,))["operations"]
    specs = {spec.name: spec for spec in specs_for(TINY, TARGET)}
    wanted = sum(
        LAUNCH_S + sum(a.nbytes for a in specs[name].arrays) / (GBS * 1e9)
        for name in ("head.one", "argmax.rows", "greedy.rows")
    )
    assert found["median_us"] == pytest.approx(1e6 * wanted, rel=1e-3)


def test_every_stage_of_every_kernel_stays_in_the_run_s_folder(tmp_path: Path) -> None:
    done = bench(tmp_path, Clockwork(), only="qkv", rows=(1,))
    folder = tmp_path / "out" / done["run"]
    assert json.loads((folder / "kernels.json").read_bytes()) == done
    assert set(done["kernels"]) == {"qkv.one", "read_bandwidth"} and not done["whole"]
    for kernel in done["kernels"].values():
        for file in kernel["files"].values():
            data = (folder / file["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
    assert (folder / "03_cubin" / "qkv.one.cubin").read_bytes() == b"qkv.one"


def test_a_kernel_that_is_wrong_is_not_timed_and_the_others_are(tmp_path: Path) -> None:
    def spoil(spec: KernelSpec, arrays: dict[str, Any]) -> None:
        if spec.name == "down.one":
            arrays["hidden"] *= 1.5

    done = bench(tmp_path, Clockwork(spoil=spoil), rows=(1,))
    by_name = {found["operation"]: found for found in done["operations"]}
    assert by_name["down"]["status"] == "failed" and "median_us" not in by_name["down"]
    assert by_name["down"]["reason"] == "not timed: down.one failed its case"
    assert by_name["qkv"]["status"] == "measured"
    assert (done["status"], done["error"]["exit_code"]) == ("failed", 5)
    assert done["error"]["message"].startswith("1 kernels are wrong and were not timed; the first: down.one:")


def test_after_a_fault_nothing_is_timed_and_the_record_says_why(tmp_path: Path) -> None:
    machine = Clockwork()
    machine.faults = {"attention.one"}
    done = bench(tmp_path, machine, rows=(1,))
    assert {found["status"] for found in done["operations"]} == {"failed"}
    assert all("CUDA_ERROR_ILLEGAL_ADDRESS" in found["reason"] for found in done["operations"])
    assert done["error"]["exit_code"] == 5 and done["limits"]["read_bandwidth"]["status"] == "missing"


def test_without_torch_s_operation_its_column_is_a_state_with_its_reason(tmp_path: Path) -> None:
    machine = Clockwork()
    machine.broken_torch = "torch: no such kernel"
    done = bench(tmp_path, machine, rows=(8,))
    for found in done["operations"]:
        assert found["torch"] == {"status": "missing", "reason": "torch: no such kernel"}
        assert found["ratio"] is None and found["bound"] == "memory"
    assert done["limits"]["matrix_rate"] == {"status": "missing", "reason": "torch: no such kernel"}
    left_out = bench(tmp_path, Clockwork(), rows=(8,), torch_too=False)
    assert left_out["operations"][0]["torch"]["reason"] == "left out with --no-torch"
    assert not left_out["whole"]


def test_the_nearer_limit_is_the_bound() -> None:
    reading, rate = {"gbs": 1000.0}, {"tflops": 100.0}
    assert limits.bound_us(1_000_000, 1000, reading, rate) == ("memory", pytest.approx(1.0))
    assert limits.bound_us(1000, 1_000_000_000, reading, rate) == ("matrix", pytest.approx(10.0))
    assert limits.bound_us(1_000_000, 10**12, reading, {}) == ("memory", pytest.approx(1.0))
    assert limits.bound_us(1, 1, {"status": "missing"}, rate) == (None, None)


def test_unknown_operations_and_rows_are_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--only: q; expected some of qkv, attention"):
        bench(tmp_path, Clockwork(), only="q")
    with pytest.raises(UsageError, match="--rows: 3; expected some of 1, 2, 4, 8, 64"):
        bench(tmp_path, Clockwork(), rows=(3,))
    with pytest.raises(UsageError, match="no such operation"):
        bench(tmp_path, Clockwork(), only="head_argmax", rows=(64,))
    assert not (tmp_path / "out").exists()


def test_a_run_on_a_machine_that_throttled_is_invalid_and_recorded(tmp_path: Path) -> None:
    options = Options(out=tmp_path / "out", only=("qkv",), rows=(1,))
    done = kernel_bench(options, TINY, built(), Clockwork(), lambda line: None, read_state=hotter())
    assert (done["status"], done["error"]["exit_code"]) == ("invalid", 7)
    assert "package_throttle_count rose by 1" in done["throttled"][0]
    assert json.loads((tmp_path / "out" / done["run"] / "kernels.json").read_bytes()) == done
    assert done["operations"][0]["status"] == "measured"


@pytest.mark.parametrize("place", ["rotate", "run_case", "read_bandwidth", "matrix_rate"])
def test_an_operation_without_memory_is_recorded_and_the_run_goes_on(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(kernel_bench_module, place), []

    def first_fails(*words: Any) -> Any:
        calls.append(words)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return real(*words)

    monkeypatch.setattr(kernel_bench_module, place, first_fails)
    done = bench(tmp_path, Clockwork(), only="qkv,down", rows=(1,))
    states = [found["status"] for found in done["operations"]]
    if place in ("read_bandwidth", "matrix_rate"):
        assert done["limits"][place] == {"status": "missing", "reason": "CUDA out of memory."}
        assert states == ["measured"] * 2 and done["status"] == "passed"
    else:
        assert sorted(states) == ["failed", "measured"] and done["error"]["exit_code"] == 5
        assert "CUDA out of memory." in done["error"]["message"]


@pytest.mark.parametrize("seed", ["-1", "x", str(1 << 63), "9" * 5000])
def test_a_seed_that_torch_does_not_take_is_refused(
    seed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("kernels", "tune"):
        words = [verb, "--contract", "tiny-cpu", "--out", str(tmp_path), f"--seed={seed}"]
        assert run_program(main, words) == 1
        assert "expected a whole number from 0 to 2**63 - 1" in capsys.readouterr().out


# The folder that travels.


def test_a_folder_brings_every_kernel_and_its_contract_along(tmp_path: Path) -> None:
    before = built()
    write_folder(tmp_path / "k", TINY, TARGET, before)
    assert folder_shapes(tmp_path / "k", "tiny-cpu") == TINY
    after = read_folder(tmp_path / "k", TINY, TARGET)
    assert {n: (b.spec, dict(b.stages)) for n, b in after.kernels.items()} == {
        n: (b.spec, dict(b.stages)) for n, b in before.kernels.items()
    }
    assert (after.compiled_by["here"], after.sources) == (False, before.sources)


def test_a_folder_of_other_bytes_sources_chips_or_contracts_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    write_folder(folder, TINY, TARGET, built())
    index = json.loads((folder / "index.json").read_bytes())

    def changed(**fields: Any) -> None:
        (folder / "index.json").write_text(json.dumps(index | fields))

    with pytest.raises(UsageError, match="is for sm_90, the GPU is sm_121"):
        read_folder(folder, TINY, "sm_121")
    with pytest.raises(UsageError, match="is for contract tiny-cpu, not qwen3"):
        folder_shapes(folder, "qwen3-4b-base-bf16-h100")
    with pytest.raises(UsageError, match="is not empty"):
        write_folder(folder, TINY, TARGET, built())
    changed(sources=index["sources"] | {"kernels/products.py": "0" * 64})
    with pytest.raises(IntegrityError, match=r"compiled from another kernels/products\.py"):
        read_folder(folder, TINY, TARGET)
    changed(contract=shapes_document(replace(TINY, sha256="0" * 64)))
    with pytest.raises(IntegrityError, match=r"compiled for another profiles/contracts/tiny-cpu\.yaml"):
        folder_shapes(folder, "tiny-cpu")
    changed(contract={"id": "tiny-cpu"})
    with pytest.raises(UsageError, match=r"index\.json: contract"):
        folder_shapes(folder, "tiny-cpu")
    entries = [entry | {"spec": "0"} for entry in index["kernels"]]
    changed(kernels=entries)
    with pytest.raises(IntegrityError, match="compiled for other shapes or tiles"):
        read_folder(folder, TINY, TARGET)
    changed()
    (folder / "03_cubin" / "qkv.one.cubin").write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"qkv\.one\.cubin: not the file that was compiled"):
        read_folder(folder, TINY, TARGET)
    with pytest.raises(UsageError, match="make a folder with"):
        folder_shapes(tmp_path, "tiny-cpu")


def test_specifications_differ_by_any_constant() -> None:
    one, other = (specs_for(shapes, TARGET)[1] for shapes in (TINY, H100))
    assert digest(one) == digest(replace(one)) != digest(other)
    assert digest(one) != digest(replace(one, occupancy=7))


def test_the_model_s_own_buffers_rotate_and_the_step_s_do_not() -> None:
    names = ("layers.0.mlp.down", "head", "keys.0", "final_norm")
    assert all(is_rotated(TINY.sizes, name) for name in names)
    assert not any(is_rotated(TINY.sizes, name) for name in ("hidden", "logits", "rotary", "arrived"))


# The program and the record.


def test_the_program_runs_what_a_folder_brings_with_neither_yaml_nor_compiler(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "k", TINY, TARGET, built())
    monkeypatch.setattr(machine, "open_gpu", Clockwork)
    monkeypatch.setattr("lean.toolchain.speed.contract_shapes.read_shapes", _not_here)
    monkeypatch.setattr("lean.toolchain.speed.binaries.compile_here", _not_here)
    words = ["--contract", "tiny-cpu", "--kernels", str(tmp_path / "k"), "--out", str(tmp_path / "out")]
    assert run_program(main, ["kernels", *words, "--only", "down", "--rows", "1,64", "--samples", "3"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert [(found["operation"], found["rows"]) for found in done["operations"]] == [
        ("down", 1),
        ("down", 64),
    ]
    assert len(done["operations"][0]["samples_us"]) == 3 and done["compiled_by"]["here"] is False
    assert run_program(main, ["kernels", *words, "--rows", "x"]) == 1
    assert "--rows 'x': expected whole numbers" in capsys.readouterr().out
    assert run_program(main, ["kernels", *words, "--compile-only"]) == 1
    assert run_program(main, ["kernels", *words, "--target", "sm_90"]) == 1


def test_a_machine_without_a_gpu_ends_with_the_preflight_s_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise PreflightError("no GPU to prove kernels on: libcuda cannot be loaded")

    monkeypatch.setattr(machine, "open_gpu", none)
    assert run_program(main, ["kernels", "--contract", "tiny-cpu", "--out", str(tmp_path / "o")]) == 4
    assert "no GPU" in capsys.readouterr().out and not (tmp_path / "o").exists()


def test_what_is_not_there_to_be_timed_is_refused_before_anything_compiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "open_gpu", Clockwork)
    monkeypatch.setattr("lean.toolchain.speed.binaries.compile_here", _not_here)
    words = ["kernels", "--contract", "tiny-cpu", "--out", str(tmp_path / "o")]
    for more in (["--only", "q"], ["--rows", "3"], ["--rows", "x"]):
        assert run_program(main, [*words, *more]) == 1
        assert more[0] in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match="give a writable --out"):
        write_folder(tmp_path / "file" / "k", TINY, TARGET, built())


def _not_here(*words: Any, **more: Any) -> None:
    raise AssertionError("not on this machine")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, dict[str, Any]]]:
    """A checkout with one source, and the document of a whole run that is about it."""
    folder = tmp_path_factory.mktemp("kept")
    limits.matrix_rate.__defaults__ = (64,)
    root = folder / "checkout"
    root.mkdir()
    (root / "kernel.py").write_text("x = 1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a kernel"]):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(root), *identity, *words], check=True)
    options = Options(out=folder / "out")
    document = kernel_bench(options, TINY, built(), Clockwork(), lambda line: None)
    document["sources"] = {"kernel.py": hashlib.sha256(b"x = 1\n").hexdigest()}
    yield folder, root, document


def test_a_whole_run_is_kept_once_with_its_page(kept: tuple[Path, Path, dict[str, Any]]) -> None:
    folder, root, document = kept
    (folder / "kernels.json").write_text(json.dumps(document))
    done = keep(folder / "kernels.json", host="h100", root=root)
    record = root / done["record"]
    assert record.parent.parent == root / "results/v1/h100/kernels" and record.name == "kernels.json"
    assert not done["dirty"] and json.loads(record.read_text())["operations"] == document["operations"]
    page = (record.parent / "report.md").read_text()
    assert page.startswith("# Hot kernels of tiny-cpu") and "Ran on a clockwork." in page
    assert page.count("| qkv | ") == 6 and "limits measured in this run: reading" in page
    with pytest.raises(UsageError, match="already recorded"):
        keep(folder / "kernels.json", host="h100", root=root)


def test_a_part_of_a_run_is_not_kept_nor_one_of_other_sources(
    kept: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, root, document = kept
    for changed, error, words in (
        ({"whole": False}, UsageError, "covers a part only"),
        ({"sources": {"kernel.py": "0" * 64}}, IntegrityError, "is not what this kernels is about"),
    ):
        (tmp_path / "kernels.json").write_text(json.dumps(document | changed))
        with pytest.raises(error, match=words):
            keep(tmp_path / "kernels.json", host="h100", root=root)
