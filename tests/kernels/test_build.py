"""Kernels built on all cores and kept by content: what the cache gives back, and what it never does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("cuda.tile", reason="cuda-tile, the kernels' front end, is not installed")

from kernels import aot, build
from kernels.qwen3 import Sizes, kernel_specs
from kernels.spec import KernelSpec
from kernels.tiles import Tile, Tiles, load_tiles

TINY = Sizes(
    layers=4, hidden=256, intermediate=768, query_heads=4, kv_heads=2, vocab=4096, eps=1e-6, length=1088
)


def small_kernel() -> KernelSpec:
    return next(spec for spec in kernel_specs(TINY, load_tiles("sm_121")) if spec.name == "last")


@pytest.fixture(scope="module")
def tools() -> aot.Tools:
    return aot.find_tools()


@pytest.fixture(scope="module")
def kept(tools: aot.Tools, tmp_path_factory: pytest.TempPathFactory) -> tuple[build.BuiltKernel, Path]:
    """One kernel, and the cache that holds it alone."""
    cache = tmp_path_factory.mktemp("cache") / "kernels"
    said: list[str] = []
    (built,) = build.build_all(tools, [small_kernel()], "sm_121", said.append, cache)
    assert said[0].startswith("sm_121: 1 kernels on ") and said[1].startswith("sm_121: 1/1 last, ")
    return built, cache


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> bytes:
        raise AssertionError("compiled although the cache holds it")

    monkeypatch.setattr(build, "compile_cubin", refuse)


def test_a_kernel_comes_with_all_its_forms(kept: tuple[build.BuiltKernel, Path]) -> None:
    built, _ = kept
    assert built.cubin.startswith(b"\x7fELF") and built.bytecode
    assert ".target" in built.sass and built.spec.symbol in built.sass
    assert 0 < built.resources.registers <= 255


@pytest.mark.usefixtures("no_compiler")
def test_a_kernel_built_before_comes_from_the_cache(
    tools: aot.Tools, kept: tuple[build.BuiltKernel, Path]
) -> None:
    built, cache = kept
    assert [path.name.startswith(".") for path in cache.iterdir()] == [False], "nothing staged is left"
    assert build.build_kernel(tools, small_kernel(), "sm_121", cache) == built


def test_other_tools_and_other_chips_have_entries_of_their_own(
    tools: aot.Tools, kept: tuple[build.BuiltKernel, Path]
) -> None:
    code = kept[0].bytecode
    newer = dataclasses.replace(tools, ptxas=dataclasses.replace(tools.ptxas, version="99"))
    keys = {
        build._key(tools, "sm_121", code),
        build._key(tools, "sm_120", code),
        build._key(tools, "sm_121", code + b"\0"),
        build._key(newer, "sm_121", code),
    }
    assert len(keys) == 4


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "folder"])
def test_a_damaged_entry_is_built_again(
    tools: aot.Tools,
    kept: tuple[build.BuiltKernel, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    damage: str,
) -> None:
    built, cache = kept
    (good,) = cache.iterdir()
    entry = tmp_path / good.name
    data = bytearray(good.read_bytes())
    data[-7] ^= 1
    if damage == "folder":
        entry.mkdir()
    else:
        entry.write_bytes({"flip": bytes(data), "cut": bytes(data[:500]), "empty": b""}[damage])
    asked: list[str] = []

    def compile_cubin(_: object, __: bytes, target: str) -> bytes:
        asked.append(target)
        return built.cubin

    monkeypatch.setattr(build, "compile_cubin", compile_cubin)
    monkeypatch.setattr(build, "disassemble_cubin", lambda *_: built.sass)
    monkeypatch.setattr(build, "resource_usage", lambda *_: built.resources)
    assert build.build_kernel(tools, small_kernel(), "sm_121", tmp_path) == built
    assert asked == ["sm_121"]
    if damage != "folder":
        assert entry.read_bytes() == good.read_bytes()


def test_a_kernel_that_fails_is_named_with_its_target(
    tools: aot.Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_out(*_: object, **__: object) -> bytes:
        raise aot.StageFailed("cubin", "tileiras did not end within 300 s")

    monkeypatch.setattr(build, "compile_cubin", time_out)
    with pytest.raises(build.BuildFailed, match="kernel last for sm_121: tileiras did not end within 300 s"):
        build.build_all(tools, [small_kernel()], "sm_121", lambda _: None)
    wrong = dataclasses.replace(small_kernel(), constants=(("WIDTH", 255),))
    with pytest.raises(build.BuildFailed, match="kernel last for sm_90: the cuTile front end refused"):
        build.build_all(tools, [small_kernel(), wrong], "sm_90", lambda _: None)


def test_a_tuning_entry_can_take_spills_as_they_are() -> None:
    allowed = Tiles(
        "sm_90", {("prompt64", "attention", "64", "128"): Tile(rows=64, width=128, t=64, spills=True)}
    )
    specs = {spec.name: spec for spec in kernel_specs(TINY, allowed)}
    assert specs["attention.prompt64"].spills and dict(specs["attention.prompt64"].constants)["T"] == 64
    assert not specs["attention.prompt256"].spills


@pytest.mark.parametrize("heights", [(32, 64), (128, 128)])
def test_prompt_attention_has_one_height_for_all_programs_and_it_divides_a_group(
    heights: tuple[int, int],
) -> None:
    short, long = (Tile(rows=64, width=128, t=t) for t in heights)
    entries = {("prompt64", "attention", "64", "128"): short}
    entries |= {(f"prompt{rows}", "attention", str(rows), "128"): long for rows in (256, 1024)}
    with pytest.raises(ValueError, match="sm_90: prompt attention must have one t that divides 64"):
        kernel_specs(TINY, Tiles("sm_90", entries))
