"""Encoded weights: what the codes stand for, and where each column of a row lies."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from kernels.case import Draw, arrays, cases_of  # noqa: E402
from kernels.encodings import BLOCK, ENCODINGS, PLANE_BITS, encoded, tile_words  # noqa: E402
from kernels.encodings.case import matrix, shape_of, weight  # noqa: E402
from kernels.encodings.reference import codebook, decode, unpacked, values  # noqa: E402
from kernels.spec import KernelSpec  # noqa: E402
from lean.toolchain.shapes import specs_of  # noqa: E402

ENCODED = ENCODINGS[1:]
WIDTHS = (256, 768, 1024, 2560, 4096, 9728)


def spec_of(encoding: str, name: str) -> KernelSpec:
    return next(spec for spec in specs_of(f"tiny+{encoding}", "any") if spec.name == name)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("encoding", ["int4-codebook", "nvfp4"])
def test_each_column_has_the_four_bits_of_its_own_word_half_and_plane(encoding: str, width: int) -> None:
    words, tile = width // 8, tile_words(width)
    codes = torch.randint(-(2**31), 2**31, (3, words), generator=torch.Generator().manual_seed(1))
    found = unpacked(encoding, codes.to(torch.int32).view(torch.uint32))
    for column in range(0, width, 37):
        within = column % (8 * tile)
        plane, j, half = within // (2 * tile), within % (2 * tile) // 2, within % 2
        for row in range(3):
            word = int(codes[row, column // (8 * tile) * tile + j]) & 0xFFFFFFFF
            turned = ((word << 4 * plane) | (word >> 32 - 4 * plane)) & 0xFFFFFFFF
            part = turned >> 16 * half & 0xFFFF
            bits = [part >> bit & 1 for bit in PLANE_BITS[encoding]]
            assert int(found[row, column]) == bits[0] * 8 + bits[1] * 4 + bits[2] * 2 + bits[3]


@pytest.mark.parametrize("encoding", ["int4-codebook", "nvfp4"])
def test_every_bit_of_a_word_belongs_to_one_column(encoding: str) -> None:
    seen = []
    for bit in range(32):
        word = 1 << bit
        codes = torch.tensor([[word - (word >> 31 << 32)] * 32], dtype=torch.int32).view(torch.uint32)
        number = unpacked(encoding, codes)[0]
        seen += [(plane, half) for plane in range(4) for half in range(2) if number[64 * plane + half]]
        assert int((number > 0).sum()) == 32
    assert sorted(seen) == sorted([(plane, half) for plane in range(4) for half in range(2)] * 4)


def test_a_codebook_has_sixteen_values_of_its_row_s_own_shape() -> None:
    table = torch.tensor([-0.7, -0.95, 0.0]).bfloat16()
    book = codebook(table)
    assert book.shape == (3, 16) and torch.equal(book[:, :8], -book[:, 8:])
    assert (book[:, 1:8] > book[:, :7]).all() and (book[:, :8] > 0).all()
    u = 1.0 + torch.arange(8) / 8
    exact = u * (u * u + table.float().unsqueeze(1))
    assert (
        (book[:, :8] - exact) / exact
    ).abs().max() < 2**-3  # a small value is the difference of two near 1
    assert ((book[:, :8] - exact).abs() <= 2**-7 * u**3).all()


def test_a_curve_of_minus_0_7_loses_a_twelfth_more_of_normal_weights_than_the_best_sixteen_values() -> None:
    x = torch.linspace(-8, 8, 80_001, dtype=torch.float64)
    density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])

    def loss(levels: torch.Tensor) -> float:
        """The least mean squared error over scales of these levels."""
        found = []
        for scale in torch.linspace(1.5, 4.0, 126, dtype=torch.float64):
            book = (levels.double() * scale / levels.abs().max()).sort().values
            index = torch.searchsorted((book[1:] + book[:-1]) / 2, x)
            found.append(float(((book[index] - x).square() * density).sum()))
        return min(found)

    lloyd_max = 0.009497  # of 16 levels: Max, "Quantizing for Minimum Distortion", 1960, table I
    assert loss(codebook(torch.tensor([-0.7]).bfloat16())[0]) / lloyd_max == pytest.approx(1.08, abs=0.01)
    assert loss(torch.arange(16) - 7.5) / lloyd_max == pytest.approx(1.22, abs=0.01)


def test_nvfp4_is_the_code_s_value_times_its_block_s_factor() -> None:
    codes = torch.arange(0, 32, dtype=torch.int32).view(1, 32).view(torch.uint32)
    table = torch.full((1, 256 // BLOCK), 2.0).to(torch.float8_e4m3fn)
    table[0, 1] = 0.5
    number = unpacked("nvfp4", codes)
    got = values("nvfp4", codes, table)
    code = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    want = torch.where(number >= 8, -1.0, 1.0) * code[(number & 7).long()]
    factor = torch.full((256,), 2.0)
    factor[16:32] = 0.5
    assert torch.equal(got, want * factor)
    assert torch.equal(decode("nvfp4", codes, torch.tensor([3.0]), table), got * 3.0)


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("name", ["qkv.one", "down.one", "down.rows", "widen.gate_up"])
def test_a_case_s_matrix_is_made_of_the_arrays_that_the_encoding_names(encoding: str, name: str) -> None:
    spec = spec_of(encoding, name)
    given = weight(Draw(1, torch.device("cpu")), spec)
    rows, width = shape_of(spec)
    assert matrix(spec, given).shape == (rows, width)
    for array in encoded(encoding, rows, width):  # type: ignore[arg-type]
        assert array.nbytes == arrays(spec)[array.name].nbytes
    for case in cases_of(spec):
        data = case.data(Draw(2, torch.device("cpu")))
        assert all(value.shape == arrays(spec)[key].stored for key, value in data.items())
        assert all(found.value.isfinite().all() for found in case.expected(data).values())


def test_a_width_that_the_kernels_cannot_tile_and_bf16_have_no_codes() -> None:
    with pytest.raises(ValueError, match="width: 320 is no multiple of 256"):
        encoded("fp8-e4m3", 64, 320)
    with pytest.raises(ValueError, match="bf16 has no codes"):
        encoded("bf16", 64, 256)


@pytest.mark.parametrize("encoding, bits", [("fp8-e4m3", 8.0), ("int4-codebook", 4.0), ("nvfp4", 4.5)])
def test_an_encoding_takes_the_bits_it_says(encoding: str, bits: float) -> None:
    size = sum(array.nbytes for array in encoded(encoding, 2560, 9728))  # type: ignore[arg-type]
    assert size * 8 / (2560 * 9728) == pytest.approx(bits, rel=0.01)
