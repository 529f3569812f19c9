"""Every kernel of a step compiled for both chips: it fits, it does not spill, and its SASS is what was meant.

Each kernel is one test, so that the workers share the compiling.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

for needed in ("cuda.tile", "torch"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

from kernels.aot import Tools, find_tools  # noqa: E402
from kernels.build import build_kernel  # noqa: E402
from kernels.case import SHARED_LIMIT, code_problems  # noqa: E402
from kernels.sass import read_sass  # noqa: E402
from kernels.spec import KernelSpec  # noqa: E402
from kernels.tiles import TUNING, load_tiles  # noqa: E402
from lean.toolchain.shapes import specs_of  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("sm_121", "sm_90")
ENCODINGS = ("fp8-e4m3", "int4-codebook", "nvfp4")
# Every kernel of a step and the read beside it; rows4 is rows2 with another grid.
STEP = ("one", "last", "rows", "rows2", "rows8", "prompt64", "read_bandwidth")
# Not slow for sm_90 either, whose kernels all ran and are proved.
OF_BOTH = ("qkv.one", "gate_up.rows", "qkv.prompt64")


@pytest.fixture(scope="module")
def tools() -> Tools:
    return find_tools()


def names(sizes: str, target: str, *, step: bool) -> list[str]:
    """Kernels of the 4B step, or all others."""
    found = [spec.name for spec in specs_of(sizes, target)]
    chosen = {name for name in found if sizes == "4b" and name.split(".")[-1] in STEP}
    return sorted(chosen if step else set(found) - chosen)


def spec_of(sizes: str, target: str, name: str) -> KernelSpec:
    return next(spec for spec in specs_of(sizes, target) if spec.name == name)


def entry_of(spec: KernelSpec, encoding: str, target: str) -> dict[str, Any] | None:
    """The tuning entry that chose this kernel's tiles."""
    kernel, _, path = spec.name.partition(".")
    shapes = {array.name: [array.shape[0], math.prod(array.shape[1:])] for array in spec.arrays}
    weight = shapes.get("codes", shapes.get("weight"))
    shape = weight or ([shapes["out"][0], 128] if kernel == "attention" else None)
    if kernel == "gate_up" and weight:
        shape = [weight[0] // 2, weight[1]]
    if "encoded" in spec.function:
        path = f"{encoding}.{path}"
    for entry in json.loads((TUNING / f"{target}.json").read_bytes())["tiles"]:
        if (entry["path"], entry["kernel"], entry["shape"]) == (path, kernel, shape):
            return dict(entry)
    return None


def check(tools: Tools, sizes: str, target: str, name: str) -> None:
    spec = spec_of(sizes, target, name)
    built = build_kernel(tools, spec, target)
    known = (entry_of(spec, sizes.partition("+")[2], target) or {}).get("resources", {})
    spills = (known.get("spill_stores", 0), known.get("spill_loads", 0))
    problems = code_problems(spec, target, read_sass(built.sass), built.resources.shared_bytes, spills)
    if not sizes.startswith(
        "4b"
    ):  # the widths are stated for the 4B's tiles; smaller rows give a thread less to read
        problems = tuple(problem for problem in problems if not problem.startswith("no access wider"))
    assert problems == ()
    found = {
        "registers": built.resources.registers,
        "shared_bytes": built.resources.shared_bytes,
        "spill_stores": built.resources.spill_stores,
        "spill_loads": built.resources.spill_loads,
    }
    assert not known or known == found


@pytest.mark.parametrize(
    "target, name",
    [
        pytest.param(target, name, marks=() if target == "sm_121" or name in OF_BOTH else pytest.mark.slow)
        for target in TARGETS
        for name in names("4b", target, step=True)
    ],
)
def test_a_kernel_of_the_step_fits_its_chip_and_is_the_code_that_was_meant(
    tools: Tools, target: str, name: str
) -> None:
    check(tools, "4b", target, name)


@pytest.mark.parametrize(
    "target, encoding, name",
    [
        *(("sm_121", encoding, "output.rows") for encoding in ENCODINGS),
        *(("sm_90", encoding, "down.one") for encoding in ENCODINGS),
    ],
)
def test_so_does_a_product_with_encoded_weights(tools: Tools, target: str, encoding: str, name: str) -> None:
    check(tools, f"4b+{encoding}", target, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "target, sizes, name",
    [
        (target, sizes, name)
        for target in TARGETS
        for sizes in ("4b", "1.7b", "0.6b", "tiny", *(f"{s}+{e}" for s in ("4b", "tiny") for e in ENCODINGS))
        for name in names(sizes, target, step=False)
    ],
)
def test_so_does_every_other_kernel_of_every_geometry(
    tools: Tools, target: str, sizes: str, name: str
) -> None:
    check(tools, sizes, target, name)


@pytest.mark.parametrize("target", TARGETS)
def test_a_tuning_file_says_what_each_choice_rests_on(target: str) -> None:
    document = json.loads((TUNING / f"{target}.json").read_bytes())
    keys = [(entry["path"], entry["kernel"], *entry["shape"]) for entry in document["tiles"]]
    assert len(set(keys)) == len(keys)
    for entry in document["tiles"]:
        assert entry.get("basis", "measured") in ("measured", "static")
        if entry.get("basis") == "static":
            used = entry["resources"]
            assert used["shared_bytes"] <= SHARED_LIMIT[target] and not used["spill_stores"]
    assert load_tiles(target).target == target


SASS = """
\t.target\tsm_90
\t.type\tx,@function
        /*0000*/                   LDG.E.64 R2, desc[UR4][R2.64] ;
        /*0010*/                   FFMA R1, R2, R3, R4 ;
        /*0020*/                   MUFU.RSQ R1, R2 ;
        /*0030*/                   STG.E desc[UR4][R2.64], R1 ;
"""


def test_code_without_its_instructions_or_with_spills_or_too_much_shared_memory_is_named() -> None:
    vector, several = spec_of("4b", "sm_90", "qkv.one"), spec_of("4b", "sm_90", "qkv.rows")
    facts = read_sass(SASS)
    assert code_problems(vector, "sm_90", facts, 1024) == ()
    assert code_problems(vector, "sm_90", replace(facts, spill_stores=3), 0) == (
        "3 spill stores and 0 loads; (0, 0) are known",
    )
    assert code_problems(vector, "sm_90", replace(facts, global_load_bytes=(4,)), 0) == (
        "no access wider than 4 bytes a thread; 8 are expected",
    )
    assert code_problems(several, "sm_90", facts, 228 * 1024) == (
        "no HGMMA",
        "no tile comes by the tensor memory accelerator",
        "233472 bytes of shared memory; a block has 232448",
    )
