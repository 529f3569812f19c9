"""The split output projection: its slots, its order, and that each bit follows from both."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch, which the references are written in, is not installed")

from kernels.case import Draw, cases_of  # noqa: E402
from kernels.output_residual.reference import output_residual  # noqa: E402
from kernels.output_split.reference import output_split, slot_bounds  # noqa: E402
from kernels.qwen3 import SPLITS, decode_program, kernel_specs  # noqa: E402
from kernels.tiles import load_tiles  # noqa: E402
from lean.toolchain.shapes import sizes_named, specs_of  # noqa: E402

HEADS, WIDTH, OUT, ROWS = 4, 512, 24, 3
SPECS = {spec.name: spec for spec in specs_of("tiny", "sm_121")}


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    mixed = torch.randn(ROWS, WIDTH, generator=draw).bfloat16()
    weight = torch.randn(OUT, WIDTH, generator=draw).bfloat16()
    return mixed, weight, torch.randn(ROWS, OUT, generator=draw)


def one_by_one(mixed: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, splits: int) -> np.ndarray:
    """The same by scalars in f32: each slot as a tree of neighbours, the slots from left to right."""
    x, w = (tensor.float().numpy() for tensor in (mixed, weight))
    out = residual.numpy().copy()
    per_head = WIDTH // HEADS
    for t in range(ROWS):
        for n in range(OUT):
            total = np.float32(0)
            for slot in range(HEADS * splits):
                head, part = divmod(slot, splits)
                first = head * per_head + per_head * part // splits
                last = head * per_head + per_head * (part + 1) // splits
                values = [np.float32(x[t, k] * w[n, k]) for k in range(first, last)]
                while len(values) > 1:
                    values = [values[i] + values[i + 1] for i in range(0, len(values), 2)]
                total = total + values[0]
            out[t, n] = out[t, n] + total
    return out


@pytest.mark.parametrize("splits", SPLITS)
def test_the_reference_adds_in_the_stated_order_bit_for_bit(splits: int) -> None:
    mixed, weight, residual = drawn()
    found = output_split(mixed, weight, residual, heads=HEADS, splits=splits)
    assert found.numpy().tobytes() == one_by_one(mixed, weight, residual, splits).tobytes()
    whole = output_residual(mixed, weight, residual)
    assert torch.allclose(found, whole, rtol=0, atol=1e-4)


def test_another_number_of_splits_is_another_order() -> None:
    mixed, weight, residual = drawn()
    found = {
        s: output_split(mixed, weight, residual, heads=HEADS, splits=s).numpy().tobytes() for s in SPLITS
    }
    assert len(set(found.values())) == len(SPLITS)


@pytest.mark.parametrize("splits", SPLITS)
def test_the_slots_cover_every_column_once_and_in_order(splits: int) -> None:
    bounds = [slot_bounds(head, 128, split, splits) for head in range(HEADS) for split in range(splits)]
    assert bounds[0][0] == 0 and bounds[-1][1] == WIDTH
    assert all(one[1] == other[0] for one, other in pairwise(bounds))
    assert {last - first for first, last in bounds} == {128 // splits}


@pytest.mark.parametrize("heads, splits", [(4, 3), (5, 1), (3, 2)])
def test_splits_that_leave_no_power_of_two_are_refused(heads: int, splits: int) -> None:
    mixed, weight, residual = drawn()
    with pytest.raises(ValueError, match="a slot must be a power of two"):
        output_split(mixed, weight, residual, heads=heads, splits=splits)


@pytest.mark.parametrize("path", ["one", "rows"])
@pytest.mark.parametrize("splits", SPLITS)
def test_what_the_two_kernels_must_leave_is_the_reference_s(splits: int, path: str) -> None:
    """The products' case, handed on to the sum's, gives the reference's bits."""
    sizes = sizes_named("tiny")
    products, summed = (cases_of(SPECS[f"{kind}{splits}.{path}"])[0] for kind in ("split", "sum"))
    given = products.data(Draw(5, torch.device("cpu")))
    partials = products.expected(given)["partials"].value.float()
    t, n = given["x"].shape[0], sizes.hidden
    beside = summed.data(Draw(6, torch.device("cpu")))
    left = summed.expected(beside | {"partials": partials.reshape(-1, t, n)})["residual"].value.float()
    mixed, weight = given["x"].flatten(1), given["weight"].flatten(1)
    whole = output_split(mixed, weight, beside["residual"], heads=sizes.query_heads, splits=splits)
    assert torch.equal(left, whole)


@pytest.mark.parametrize("bucket, path", [(1, "one"), (2, "rows"), (8, "rows")])
def test_a_split_step_has_two_launches_for_each_projection(bucket: int, path: str) -> None:
    sizes = sizes_named("tiny")
    whole, split = decode_program(sizes, bucket), decode_program(sizes, bucket, split_k=4)
    assert len(split) == len(whole) + sizes.layers
    found = [launch.kernel for launch in split if launch.kernel not in {one.kernel for one in whole}]
    assert found == [f"split4.{path}", f"sum4.{path}"] * sizes.layers
    assert f"output.{path}" not in {launch.kernel for launch in split}


def test_encoded_weights_are_not_split() -> None:
    with pytest.raises(ValueError, match=r"nvfp4 weights, 4 query heads; .* is split for bf16"):
        decode_program(sizes_named("tiny+nvfp4"), 1, split_k=2)


def test_heads_that_are_no_power_of_two_have_no_split_kernels() -> None:
    sizes = replace(sizes_named("tiny"), query_heads=24, kv_heads=12)
    assert not [spec.name for spec in kernel_specs(sizes, load_tiles("sm_121")) if "split" in spec.name]
    with pytest.raises(ValueError, match="24 query heads"):
        decode_program(sizes, 1, split_k=2)
