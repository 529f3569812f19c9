"""Packs with kernels for two chips: what the records say, and that no altered file or record is believed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cuda.tile", reason="cuda-tile, which compiles kernels, is not installed")

from kernels.qwen3 import kernel_specs
from kernels.signature import ABI
from kernels.tiles import load_tiles
from lean.contracts import Contract, load_contract
from lean.errors import ContractError, PackError, PreflightError, UsageError
from lean.kernel_sizes import sizes_of
from lean.leanpack import compile as compile_module
from lean.leanpack import open_pack, read_manifest
from lean.leanpack.__main__ import main
from lean.leanpack.build import BuildRequest, build_pack
from lean.leanpack.kernel_spec import spec_of
from lean.leanpack.sealing import BuildReport
from lean.leanpack.verify import verify_pack

SOME = ("last", "output.one", "greedy.prompt")
CHIPS = ("sm_121", "sm_90")
ALL_KERNELS = compile_module.kernel_specs_of
CUBIN = "targets/sm_90/output.one.cubin"


def some_kernels(contract: Contract, target: str) -> tuple[Any, ...]:
    """Three that compile fast; all of them take minutes."""
    specs = kernel_specs(sizes_of(contract), load_tiles(target))
    return tuple(spec for spec in specs if spec.name in SOME)


def request(packs: Path, **changes: Any) -> BuildRequest:
    values = {"seed": 1, "contract": load_contract("tiny-cpu"), "packs": packs, "encoding": "bf16"}
    return BuildRequest(**(values | {"target": "cpu,sm_90,sm_121"} | changes))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def few_kernels(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(compile_module, "kernel_specs_of", some_kernels)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> BuildReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_module, "kernel_specs_of", some_kernels)
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return build_pack(request(tmp_path_factory.mktemp("packs")))


@pytest.fixture
def copy(built: BuildReport, tmp_path: Path) -> Path:
    """The pack again, in a place where it may be written to."""
    path = tmp_path / Path(built.path).name
    shutil.copytree(built.path, path)
    for file in path.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    return path


def test_a_pack_with_kernels_for_two_chips_verifies(built: BuildReport) -> None:
    assert verify_pack(Path(built.path)).lock == built.lock
    manifest, _ = read_manifest(built.path)
    cpu, *chips = manifest.targets
    assert (cpu.runner, cpu.kernels) == ("torch", ())
    assert [target.name for target in chips] == list(CHIPS)
    for target in chips:
        assert target.runner == "cuda" and {kernel.name for kernel in target.kernels} == set(SOME)
        for kernel in target.kernels:
            assert (Path(built.path) / kernel.cubin).read_bytes().startswith(b"\x7fELF")
            assert f".target\t{target.name}" in (Path(built.path) / kernel.sass).read_text()
            assert (kernel.abi, kernel.spill_stores) == (ABI, 0) and kernel.registers > 0
    for tool in ("cuda-tile", "tileiras", "ptxas", "libnvvm", "nvdisasm"):
        assert manifest.toolchain[tool]


def test_a_record_is_enough_to_launch_its_kernel(built: BuildReport) -> None:
    manifest, _ = read_manifest(built.path)
    for target in manifest.targets[1:]:
        expected = some_kernels(manifest.contract, target.name)
        assert tuple(spec_of(record) for record in target.kernels) == expected


def test_inspecting_shows_every_kernel_with_its_resources(built: BuildReport) -> None:
    from remote.tasks.appliance import KERNEL_COLUMNS, TARGET_COLUMNS, kernel_rows, origin_of, target_rows

    manifest = main(["inspect", built.path])["manifest"]
    assert [row[:3] for row in target_rows(manifest)][1:] == [("sm_121", "cuda", 3), ("sm_90", "cuda", 3)]
    assert all(len(row) == len(TARGET_COLUMNS) for row in target_rows(manifest))
    rows = kernel_rows(manifest)
    assert {row[:2] for row in rows} == {(chip, name) for chip in CHIPS for name in SOME}
    assert all(len(row) == len(KERNEL_COLUMNS) for row in rows)
    assert origin_of(manifest) == "random, seed 1"


def test_the_same_inputs_give_the_same_lock_without_the_cache_too(
    built: BuildReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, _ = read_manifest(built.path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    again = build_pack(request(tmp_path / "packs", target="sm_90"))
    (target,) = read_manifest(again.path)[0].targets
    assert target == manifest.targets[2]
    for kernel in target.kernels:
        for name in (kernel.tilebc, kernel.cubin, kernel.sass):
            assert (Path(again.path) / name).read_bytes() == (Path(built.path) / name).read_bytes()


def test_building_again_finds_the_pack_and_other_kernels_make_another(
    built: BuildReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = Path(built.path).parent
    second = build_pack(request(packs))
    assert (second.built, second.lock) == (False, built.lock)
    monkeypatch.setattr(compile_module, "kernel_specs_of", lambda c, t: some_kernels(c, t)[:1])
    other = build_pack(request(packs))
    assert other.built and other.lock != built.lock


def test_a_cubin_with_one_flipped_byte_is_refused_by_name(copy: Path) -> None:
    data = bytearray((copy / CUBIN).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / CUBIN).write_bytes(data)
    with pytest.raises(PackError, match=rf"{CUBIN}: sha256 is not the manifest's"):
        open_pack(copy)


@pytest.mark.parametrize("kind", ["tilebc", "cubin", "sass"])
def test_a_missing_file_of_a_kernel_is_named(copy: Path, kind: str) -> None:
    name = CUBIN.replace("cubin", kind)
    (copy / name).unlink()
    with pytest.raises(PackError, match=f"{name}: is missing"):
        open_pack(copy)


Edit = Callable[[dict[str, Any]], object]
RECORDS: list[tuple[str, Edit, str]] = [
    (
        "dtype",
        lambda k: k["arrays"][0].update(dtype="f64"),
        "dtype: expected one of bf16, f32, i32, u32, e4m3, got 'f64'",
    ),
    ("flat grid", lambda k: k.update(grid=[1, 1]), r"grid: expected three counts .* got \[1, 1\]"),
    ("empty grid", lambda k: k.update(grid=[1, 0, 1]), "grid: expected three counts"),
    ("giant grid", lambda k: k.update(grid=[1, 1 << 16, 1]), "grid: expected three counts"),
    ("grid of words", lambda k: k.update(grid=["1", 1, 1]), r"grid\[0\]: expected int"),
    ("shape", lambda k: k["arrays"][0].update(shape=[0]), "shape: expected 1 to 8 positive sizes"),
    ("giant shape", lambda k: k["arrays"][0].update(shape=[1 << 30] * 3), "more than any device holds"),
    ("no arrays", lambda k: k.update(arrays=[]), "arrays: expected at least one"),
    ("array name", lambda k: k["arrays"][0].update(name="a b"), "arrays: expected at least one, with plain"),
    ("twice", lambda k: k["arrays"].append(k["arrays"][0]), "arrays, constants: a name stands twice"),
    ("constant", lambda k: k["constants"][0].update(value="x"), "value: expected int, got 'x'"),
    ("truth", lambda k: k["constants"][0].update(value=True), "value: expected int, got True"),
    ("abi", lambda k: k.update(abi="cdecl"), "abi: expected cutile_python_v2, got 'cdecl'"),
    ("symbol", lambda k: k.update(symbol="main"), "symbol: expected 'output_one'"),
    ("name", lambda k: k.update(name="../last"), "name: expected lower-case words"),
    ("function", lambda k: k.update(function="os:system()"), "function: expected module:name"),
    (
        "file",
        lambda k: k.update(cubin="targets/sm_121/greedy.prompt.cubin"),
        "cubin: expected 'targets/sm_121/output.one",
    ),
    ("leaves", lambda k: k.update(sass="../../x"), "sass: expected"),
    ("registers", lambda k: k.update(registers=256), "registers: expected 1 to 255"),
    ("shared", lambda k: k.update(shared_bytes=-1), "shared_bytes: negative"),
    ("occupancy", lambda k: k.update(occupancy=0), "occupancy: expected 1 to 32"),
    ("unknown", lambda k: k.update(launch="yes"), "launch: unknown key"),
]


@pytest.mark.parametrize(("edit", "message"), [row[1:] for row in RECORDS], ids=[row[0] for row in RECORDS])
def test_a_lying_kernel_record_is_refused_naming_the_field(
    copy: Path, relock: Callable[[Path, bytes], Path], edit: Edit, message: str
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    edit(manifest["targets"][1]["kernels"][0])
    with pytest.raises(PackError, match=message):
        read_manifest(relock(copy, json.dumps(manifest).encode()))


TARGETS: list[tuple[str, Edit, str]] = [
    ("twice", lambda m: m["targets"].append(m["targets"][1]), "targets: expected at least one, none of them"),
    ("name", lambda m: m["targets"][1].update(name="../sm_121"), "no target that runner cuda has"),
    ("no kernels", lambda m: m["targets"][1].update(kernels=[]), "kernels: 0 of them for runner cuda"),
    ("torch", lambda m: m["targets"][1].update(runner="torch"), "no target that runner torch has"),
    ("encoding", lambda m: m["targets"][1].update(encoding="nvfp4"), "encoding: expected 'bf16'"),
    (
        "kernel twice",
        lambda m: m["targets"][1]["kernels"].append(m["targets"][1]["kernels"][0]),
        "a name stands",
    ),
    ("kernel away", lambda m: m["targets"][1]["kernels"].pop(), "does not belong into a pack"),
    (
        "weights",
        lambda m: m.update(weights="checkpoint"),
        "source: random weights, their kind and their seed",
    ),
    ("seed", lambda m: m["source"].update(seed=None), "source: random weights"),
]


@pytest.mark.parametrize(("edit", "message"), [row[1:] for row in TARGETS], ids=[row[0] for row in TARGETS])
def test_a_lying_target_is_refused(
    copy: Path, relock: Callable[[Path, bytes], Path], edit: Edit, message: str
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    edit(manifest)
    with pytest.raises(PackError, match=message):
        read_manifest(relock(copy, json.dumps(manifest).encode()))


def test_an_unknown_chip_is_refused_with_the_known_ones_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'sm_77' is unknown; known: cpu, sm_80, .*sm_90.*sm_121"):
        build_pack(request(tmp_path / "packs", target="cpu,sm_77"))
    assert not (tmp_path / "packs").exists()


def test_spills_nobody_asked_for_are_refused_with_their_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels import build

    original = build.build_all

    def spilling(*arguments: Any) -> Any:
        return tuple(
            dataclasses.replace(
                kernel, resources=dataclasses.replace(kernel.resources, spill_stores=3, spill_loads=4)
            )
            for kernel in original(*arguments)
        )

    monkeypatch.setattr(build, "build_all", spilling)
    with pytest.raises(PackError, match=r"sm_90: .*last \(3 stores, 4 loads\).*tuning/sm_90.json") as caught:
        build_pack(request(tmp_path / "packs", target="sm_90"))
    assert caught.value.exit_code == 8
    allowed = lambda c, t: tuple(dataclasses.replace(s, spills=True) for s in some_kernels(c, t))  # noqa: E731
    monkeypatch.setattr(compile_module, "kernel_specs_of", allowed)
    report = build_pack(request(tmp_path / "packs", target="sm_90"))
    (target,) = read_manifest(report.path)[0].targets
    assert all(spec_of(kernel).spills for kernel in target.kernels)


def test_a_compiler_that_fails_is_an_error_of_the_pack_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels import aot, build

    def crash(*_: object) -> bytes:
        raise aot.StageFailed("cubin", "tileiras 13.4 failed with signal 11 and said: nothing", -11)

    monkeypatch.setattr(build, "compile_cubin", crash)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    with pytest.raises(PackError, match=r"tiny-cpu: kernel output.one for sm_90: tileiras .* signal 11"):
        build_pack(request(tmp_path / "packs", target="sm_90"))
    assert [path.name for path in (tmp_path / "packs").iterdir()] == [".tiny-cpu.lock"]


def test_without_the_compiler_the_fix_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "kernels"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cuda.tile", None)
    import kernels

    monkeypatch.delattr(kernels, "aot", raising=False)
    monkeypatch.delattr(kernels, "build", raising=False)
    with pytest.raises(
        PreflightError, match=r"needs cuda-tile.*pip install 'cuda-tile\[tileiras\].*--target cpu"
    ):
        build_pack(request(tmp_path / "packs"))
    assert not (tmp_path / "packs").exists()


def test_a_geometry_without_kernels_is_refused_before_anything_is_written(
    tmp_path: Path, contract_of: Callable[..., Contract]
) -> None:
    with pytest.raises(ContractError, match=r"geometry.head_dim: the kernels have 128, not 16"):
        build_pack(request(tmp_path / "packs", contract=contract_of(), target="sm_90"))
    assert not (tmp_path / "packs").exists()


def test_tiles_that_do_not_fit_a_contract_are_an_error_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels import tiles

    entry = {"path": "one", "kernel": "qkv", "shape": [1024, 256], "tile": {"rows": 1, "width": 96}}
    document = {"schema": "tiles/v1", "target": "sm_90", "tiles": [entry]}
    (tmp_path / "sm_90.json").write_text(json.dumps(document))
    monkeypatch.setattr(tiles, "TUNING", tmp_path)
    monkeypatch.setattr(compile_module, "kernel_specs_of", ALL_KERNELS)
    with pytest.raises(ContractError, match="tiny-cpu: no tiles for sm_90: width 96 does not divide 256"):
        build_pack(request(tmp_path / "packs", target="sm_90"))
    assert not (tmp_path / "packs").exists()


def test_planning_lists_the_kernels_and_compiles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["--random", "1", "--contract", "tiny-cpu", "--packs", str(tmp_path / "packs"), "--manifest-only"]
    planned = main(["build", *words, "--target", "cpu,sm_90"])
    assert "qkv.one" in planned["kernels"]["sm_90"] and len(planned["kernels"]) == 1
    assert list(tmp_path.iterdir()) == []
