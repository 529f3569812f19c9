"""Gaps come from the tree: what is taken away shows up, what is added closes them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lean.contracts import load_contract, load_profile
from lean.gaps import find
from lean.gaps.find import KINDS, Gap, find_gaps, kernels_missing, never_run, not_compiled
from lean.toolchain.sources import sha256_of

ROOT = Path(__file__).resolve().parents[2]
GB10 = load_contract("qwen3-4b-base-bf16-gb10")
CHIP = "sm_121"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout's contracts, profiles and kernels, and no results."""
    for name in ("profiles", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def of_kind(gaps: tuple[Gap, ...], kind: str) -> dict[str, str]:
    return {gap.about: gap.problem for gap in gaps if gap.kind == kind}


def keep_portability(tree: Path, **changes: Any) -> Path:
    """A kept matrix of the 4b geometry on one chip, over the kernels of `tree`."""
    cell = {"status": "ok"}
    record = {
        "sizes": "4b",
        "sources": {
            "kernels/aot.py": sha256_of((tree / "kernels/aot.py").read_bytes()),
            f"kernels/tuning/{CHIP}.json": sha256_of((tree / f"kernels/tuning/{CHIP}.json").read_bytes()),
            "kernels/tuning/sm_90.json": "another chip's",
        },
        "kernels": [{"kernel": name, "cells": {CHIP: cell}} for name in ("qkv.one", "head.one")],
    }
    path = tree / "results/v1/loopback/portability/20260101T000000Z-0123456/portability.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | changes))
    return path


def compiled(tree: Path) -> dict[str, str]:
    return of_kind(tuple(not_compiled([GB10], tree)), "not compiled")


def test_the_kernels_of_every_contract_are_there_and_one_taken_away_is_named(tree: Path) -> None:
    assert list(kernels_missing(GB10, tree)) == []
    (tree / "kernels/attention/kernel.py").write_text("def attend():\n    pass\n")
    problems = [gap.problem for gap in kernels_missing(GB10, tree)]
    assert "kernels/attention/kernel.py has no function append_prompt" in problems
    assert not any(problem.endswith(" attend") for problem in problems)


def test_an_operation_that_no_kernel_does_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_specs = find.kernel_specs

    def without_attention(*given: Any) -> Any:
        return tuple(spec for spec in kernel_specs(*given) if spec.operation != "attention")

    monkeypatch.setattr(find, "kernel_specs", without_attention)
    (gap,) = kernels_missing(GB10, tree)
    assert (gap.about, gap.problem) == (GB10.id, "no kernel does attention []")


def test_a_geometry_that_the_kernels_do_not_have_is_a_gap(tree: Path) -> None:
    geometry = dataclasses.replace(GB10.model.geometry, head_dim=64)
    odd = dataclasses.replace(GB10, model=dataclasses.replace(GB10.model, geometry=geometry))
    (gap,) = kernels_missing(odd, tree)
    assert "head_dim: the kernels have 128, not 64" in gap.problem


def test_a_chip_counts_as_compiled_by_a_kept_record_of_these_very_sources(tree: Path) -> None:
    assert compiled(tree) == {f"4b on {CHIP}": "no kept portability record of this geometry"}
    keep_portability(tree)
    assert compiled(tree) == {}
    (tree / "kernels/aot.py").write_text("changed")
    assert "kernels/aot.py changed since results/v1/loopback" in compiled(tree)[f"4b on {CHIP}"]


def test_what_a_record_says_of_a_chip_is_said(tree: Path) -> None:
    cells = {"qkv.one": {CHIP: {"status": "spills"}}, "head.one": {CHIP: {"status": "ok"}}, "down.one": {}}
    keep_portability(tree, kernels=[{"kernel": name, "cells": cell} for name, cell in cells.items()])
    assert compiled(tree)[f"4b on {CHIP}"].startswith("1 left out, 1 spills of 3 kernels (qkv.one, down.one)")
    keep_portability(tree, kernels=[{"kernel": "qkv.one", "cells": {"sm_90": {"status": "ok"}}}])
    assert "leaves this chip out" in compiled(tree)[f"4b on {CHIP}"]


def test_a_record_that_cannot_be_read_is_a_gap_of_its_own(tree: Path) -> None:
    keep_portability(tree).write_text("{")
    gaps = tuple(not_compiled([GB10], tree))
    assert [gap.kind for gap in gaps] == ["unreadable", "not compiled"]


def test_a_profile_counts_as_run_by_a_sound_run_on_every_host_that_ran_the_contract(tree: Path) -> None:
    contract = load_contract("qwen3-4b-base-bf16-h100")
    profiles = [load_profile(name) for name in ("decode_64_256", "decode_64_256_b8", "decode_64_512")]
    none = of_kind(tuple(never_run([contract], profiles, tree)), "never run")
    assert none == {f"{contract.id}, {p.id}": "no sound run on any host" for p in profiles}
    for profile in profiles[:2]:
        (run,) = sorted((ROOT / "results/v1/h100" / profile.id).glob("20261121T1254*")) or sorted(
            (ROOT / "results/v1/h100" / profile.id).glob("20261121T1255*")
        )
        shutil.copytree(run, tree / "results/v1/h100" / profile.id / run.name)
    left = of_kind(tuple(never_run([contract], profiles, tree)), "never run")
    assert left == {f"{contract.id}, decode_64_512": "no sound run on h100"}


def test_a_broken_run_is_named_and_does_not_count(tree: Path) -> None:
    run = tree / "results/v1/h100/decode_64_256/20261121T125443.096Z-7a77bc0"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{")
    gaps = tuple(never_run([GB10], [load_profile("decode_64_256")], tree))
    assert [gap.kind for gap in gaps] == ["unreadable", "never run"]


def test_tiles_and_proofs_that_nobody_measured_are_counted(tree: Path) -> None:
    found = find_gaps(tree)
    assert [gap.kind for gap in found] == sorted((gap.kind for gap in found), key=KINDS.index)
    unproven = of_kind(found, "unproven")
    assert set(unproven) == {f.relative_to(tree).as_posix() for f in tree.glob("kernels/*/kernel.py")}
    tuning = json.loads((tree / f"kernels/tuning/{CHIP}.json").read_text())
    static = [entry for entry in tuning["tiles"] if entry["basis"] == "static"]
    said = of_kind(found, "static tiles")[f"kernels/tuning/{CHIP}.json"]
    assert said.startswith(f"{len(static)} of {len(tuning['tiles'])} were never measured: ")
    for entry in tuning["tiles"]:
        entry["basis"] = "measured"
    (tree / f"kernels/tuning/{CHIP}.json").write_text(json.dumps(tuning))
    assert f"kernels/tuning/{CHIP}.json" not in of_kind(find_gaps(tree), "static tiles")
    (tree / f"kernels/tuning/{CHIP}.json").unlink()
    assert "no entry at all" in of_kind(find_gaps(tree), "static tiles")[f"kernels/tuning/{CHIP}.json"]


def test_the_program_tells_every_kind(tree: Path) -> None:
    from lean.gaps.__main__ import main

    document = main(["--root", str(tree)])
    assert set(document["counts"]) == set(KINDS)
    assert sum(document["counts"].values()) == len(document["gaps"])
    assert json.loads(json.dumps(document)) == document
