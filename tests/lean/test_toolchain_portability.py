"""The portability matrix: cells, the figure, the cache, and compilers that fail."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("cuda.tile", reason="cuda-tile, the kernels' front end, is not installed")

import toolchain_fakes as fakes

from kernels import aot
from kernels.sass import read_sass
from lean.cli import run_program
from lean.errors import UsageError
from lean.toolchain.__main__ import main
from lean.toolchain.instructions import read_instructions
from lean.toolchain.portability import matrix as module
from lean.toolchain.portability.cells import SHARED_LIMITS, Job, compile_cell, identity, read_cell
from lean.toolchain.portability.matrix import Options, portability
from lean.toolchain.shapes import specs_of

SPECS = {spec.name: spec for spec in specs_of("tiny", "sm_80")}


def quiet(line: str) -> None:
    del line


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six kernels of the tiny geometry, two of them the same but for name and grid."""
    names = ("embedding.one", "qkv.one", "head.one", "output.one", "down.one")
    specs = tuple(SPECS[name] for name in names)
    again = replace(SPECS["embedding.one"], name="embedding.again", grid=(7, 1, 1))
    monkeypatch.setattr(module, "specs_of", lambda sizes, target: (*specs, again))


def test_a_crash_a_hang_and_a_refusal_are_cells_and_the_other_kernels_go_on(few: None) -> None:
    options = Options(sizes="tiny", targets=("sm_80", "sm_90"), seconds=2)
    document = portability(options, quiet, fakes.compile_cell)
    cells = {row["kernel"]: row["cells"]["sm_80"] for row in document["kernels"]}
    assert {name: cell["status"] for name, cell in cells.items()} == {
        "embedding.one": "ok",
        "embedding.again": "ok",
        "qkv.one": "lost",
        "head.one": "lost",
        "output.one": "does-not-fit",
        "down.one": "refused",
    }
    assert cells["qkv.one"]["why"].endswith("its process died of signal 11 (SIGSEGV)")
    assert cells["head.one"]["why"].endswith("it did not end within 2 s and was stopped")
    assert cells["down.one"]["why"] == "error: no such tile"
    chip = document["targets"][0]
    assert [chip[status] for status in ("ok", "does-not-fit", "refused", "lost")] == [2, 1, 1, 2]
    assert (chip["tiles"], document["targets"][1]["tiles"]) == ("default rules", "tuning file")
    assert document["distinct"] == document["compiled"] == 10  # of 12: two are the same on each chip
    assert document["figure"] == {
        "chips": 2,
        "files": 3,
        "files_that_compile_everywhere": 1,
        "files_that_fit_everywhere": 1,
        "functions": 3,
        "functions_that_compile_everywhere": 1,
        "functions_that_fit_everywhere": 1,
    }


def test_an_unknown_chip_or_geometry_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="sm_1; expected some of sm_80, sm_86"):
        portability(Options(targets=("sm_1",)), quiet)
    with pytest.raises(UsageError, match="nothing named; expected"):
        portability(Options(targets=()), quiet)
    with pytest.raises(UsageError, match="expected some of tiny"):
        portability(Options(sizes="9b", targets=("sm_80",)), quiet)


def test_a_kernels_identity_is_not_its_name_or_grid_but_all_that_is_compiled() -> None:
    spec = SPECS["qkv.one"]
    same = replace(spec, name="other", operation="other", grid=(1, 1, 1), spills=True)
    assert identity(same) == identity(spec)
    for other in (
        replace(spec, occupancy=2),
        replace(spec, warps=8),
        replace(spec, function="x:y"),
        replace(spec, constants=(*spec.constants, ("MORE", 1))),
        replace(spec, arrays=spec.arrays[1:]),
    ):
        assert identity(other) != identity(spec)


def test_cells_come_from_the_cache_per_chip_and_a_damaged_entry_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "specs_of", lambda sizes, target: (SPECS["greedy.rows"],))
    options = Options(sizes="tiny", targets=("sm_86", "sm_121"), cache=tmp_path)
    cold = portability(options, quiet)
    assert (cold["compiled"], cold["from_cache"]) == (2, 0)
    warm = portability(options, quiet, fakes.compile_cell)  # a compiler that is not asked
    assert (warm["compiled"], warm["from_cache"]) == (0, 2)
    assert warm["kernels"] == cold["kernels"]
    binaries = {cell["cubin_sha256"] for cell in cold["kernels"][0]["cells"].values()}
    assert len(binaries) == 2
    entry = sorted((tmp_path / "portability").iterdir())[0]
    entry.write_text(entry.read_text().replace('"registers": ', '"registers": 1'))
    again = portability(options, quiet)
    assert (again["compiled"], again["from_cache"]) == (1, 1)
    assert {cell["cubin_sha256"] for cell in again["kernels"][0]["cells"].values()} == binaries


def test_a_real_refusal_has_the_compilers_own_words(tmp_path: Path) -> None:
    spec = replace(SPECS["qkv.one"], constants=SPECS["qkv.one"].constants[:-1])
    job = Job(tools=aot.find_tools(), spec=spec, target="sm_100", entry=tmp_path / "x.json", cache=None)
    cell = compile_cell(job)
    assert (cell["status"], cell["stage"]) == ("refused", "bytecode")
    assert cell["why"].startswith("the cuTile front end refused the kernel for sm_100: ")
    assert read_cell(tmp_path / "x.json") == cell


def test_more_shared_memory_than_the_chip_has_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tools=aot.find_tools(), spec=SPECS["head.one"], target="sm_80", entry=None, cache=None)
    whole = compile_cell(job)
    assert whole["status"] == "ok" and whole["shared_bytes"] > 8
    monkeypatch.setitem(SHARED_LIMITS, "sm_80", 8)
    cell = compile_cell(job)
    assert cell["status"] == "does-not-fit"
    assert cell["why"] == f"{whole['shared_bytes']} bytes of shared memory; a block has 8"


def test_a_compiler_that_dies_is_lost_and_not_kept_while_a_refusal_is(tmp_path: Path) -> None:
    tools = fakes.with_script(aot.find_tools(), "tileiras", tmp_path, "kill -SEGV $$")
    job = Job(tools=tools, spec=SPECS["greedy.rows"], target="sm_90", entry=tmp_path / "x.json", cache=None)
    cell = compile_cell(job)
    assert (cell["status"], cell["stage"]) == ("lost", "cubin") and "failed with signal 11" in cell["why"]
    assert not (tmp_path / "x.json").exists()
    tools = fakes.with_script(aot.find_tools(), "tileiras", tmp_path, "echo too big; exit 5")
    cell = compile_cell(replace(job, tools=tools))
    assert cell["status"] == "refused" and cell["why"].endswith("failed with code 5 and said: too big")
    assert (tmp_path / "x.json").exists()


def test_a_half_installed_toolchain_is_named_before_anything_is_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", fakes.without("nvidia-nvvm"))
    assert run_program(main, ["portability", "--target", "sm_90"]) == 4
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert message.startswith(
        "libnvvm.so.4 is missing: the package nvidia-nvvm is not installed; pip install"
    )


def test_only_every_chip_of_the_official_geometry_is_a_whole_matrix(few: None) -> None:
    every = tuple(SHARED_LIMITS)
    for sizes, targets, whole in (("4b", every, True), ("4b", every[1:], False), ("tiny", every, False)):
        options = Options(sizes=sizes, targets=targets, seconds=60)
        assert portability(options, quiet, fakes.compile_anything)["whole"] is whole


def test_matrix_and_load_instructions_are_told_apart() -> None:
    lines = ("HGMMA.64x64x16.F32", "LDGSTS.E.BYPASS.128", "LDG.E.64", "UTMALDG.2D", "OMMA.SF.16864", "FFMA")
    body = "".join(f"        /*{i * 16:04x}*/                   {op} R1 ;\n" for i, op in enumerate(lines))
    found = read_instructions(read_sass(f"\t.target\tsm_90\n{body}"))
    assert found.matrix == ("HGMMA", "OMMA")
    assert found.loads == ("TMA", "LDG", "LDGSTS")
    assert found.widest_load == 16


def test_as_typed_it_prints_one_document_and_refuses_bad_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words, message in (
        (["--target", "sm_7"], "--target: sm_7; expected some of"),
        (["--workers", "0"], "expected a number from 1 to 1024"),
        (["--limit-s", "nan"], "expected seconds, more than 0"),
    ):
        assert run_program(main, ["portability", *words]) == 1
        assert message in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.slow
def test_the_tiny_geometry_compiles_for_an_old_and_a_new_chip_without_a_tuning_file() -> None:
    document = portability(Options(sizes="tiny", targets=("sm_86", "sm_103")), quiet)
    figure = document["figure"]
    files = {row["function"].split(":")[0] for row in document["kernels"]}
    assert figure["files_that_compile_everywhere"] == figure["files"] == len(files)
    old, new = document["targets"]
    assert old["matrix"] == ["HMMA"] and "TMA" not in old["loads"]
    assert new["matrix"] == ["UTCHMMA"] and "TMA" in new["loads"]
    assert old["lost"] == new["lost"] == old["refused"] == new["refused"] == 0
