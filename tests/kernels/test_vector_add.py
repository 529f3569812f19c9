"""Vector add's reference against numpy, and the figures its cases state."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.vector_add.cases import CASES, HALF_ULP, Case

torch = pytest.importorskip("torch", reason="torch, which the references are written in, is not installed")

from kernels.vector_add.reference import vector_add  # noqa: E402


def vectors(count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(7)
    return tuple((random.standard_normal(count) * 1e3).astype(np.float32) for _ in range(2))


def test_the_reference_is_numpy_s_float32_addition_bit_for_bit() -> None:
    a, b = vectors(4099)
    found = vector_add(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_array_equal(found.view(np.uint32), (a + b).view(np.uint32))


def test_the_tolerance_is_what_one_rounding_costs_and_no_more() -> None:
    a, b = vectors(2**18)
    exact = a.astype(np.float64) + b.astype(np.float64)
    worst = float(np.max(np.abs((a + b).astype(np.float64) - exact) / np.abs(exact)))
    assert HALF_ULP / 2 < worst <= HALF_ULP
    assert {case.relative_tolerance for case in CASES} == {HALF_ULP}
    assert all(len(case.tolerance_reason) > 20 for case in CASES)


@pytest.mark.parametrize(
    "a, b",
    [
        (torch.zeros(3), torch.zeros(4)),
        (torch.zeros(3, dtype=torch.float64), torch.zeros(3)),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int32)),
        (torch.zeros(2, 2), torch.zeros(2, 2)),
    ],
)
def test_the_reference_refuses_other_shapes_and_dtypes(a: torch.Tensor, b: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        vector_add(a, b)


def test_the_first_case_is_the_smoke_shape_and_one_case_has_a_ragged_end() -> None:
    assert (CASES[0].elements, CASES[0].tile, CASES[0].grid) == (1048576, 256, (4096, 1, 1))
    assert any(case.elements % case.tile for case in CASES)


@pytest.mark.parametrize(
    "elements, tile, grid, bytes_moved", [(1, 256, 1, 12), (256, 256, 1, 3072), (257, 256, 2, 3084)]
)
def test_grid_bytes_and_flops_follow_from_the_shape(
    elements: int, tile: int, grid: int, bytes_moved: int
) -> None:
    case = Case(
        name="x",
        elements=elements,
        tile=tile,
        relative_tolerance=0.0,
        tolerance_reason="",
        sass=(),
        access_bytes=4,
    )
    assert case.grid == (grid, 1, 1)
    assert case.bytes_moved == bytes_moved
    assert case.flops == elements
