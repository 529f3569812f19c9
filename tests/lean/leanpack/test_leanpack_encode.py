"""Encoding rows: torch's own FP8 and the kernels' reference are the oracles, and errors have bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.encodings import ENCODINGS, FOUR_BIT, Encoding, encoded
from kernels.encodings.reference import codebook as reference_codebook
from kernels.encodings.reference import decode, unpacked, values
from kernels.spec import Array
from lean.leanpack.encode import CURVES, Encoded, codebook, e4m3_values, encode, to_e4m3, to_words
from lean.leanpack.encoded_contents import BLOCK, row_blocks

CODED = ENCODINGS[1:]
WIDTHS = (256, 512, 768, 2560, 4096, 9728)
# Relative Frobenius error of normal weights. e4m3 has 8 steps an octave: uniform in a step, 1 / (12 · 8²) of
# the step's lower end squared, 0.0265 over an octave. The best 16 values there are (Lloyd-Max) leave 0.0975;
# a curve of -0.7 has 1.10 times their squared error. nvfp4's blocks of 16 measured 0.0954.
MOST: dict[Encoding, float] = {"fp8-e4m3": 0.028, "int4-codebook": 0.0975 * 1.10**0.5, "nvfp4": 0.098}


def bits_of(matrix: Tensor) -> np.ndarray:
    return matrix.bfloat16().view(torch.int16).numpy().view(np.uint16)


def as_torch(name: str, array: Array, part: np.ndarray) -> Tensor:
    view = {"e4m3": torch.float8_e4m3fn, "u32": torch.uint32, "f32": torch.float32, "bf16": torch.bfloat16}
    assert (array.name, array.shape, array.nbytes) == (name, part.shape, part.nbytes)
    return torch.from_numpy(part.view(np.int16) if array.dtype == "bf16" else part).view(view[array.dtype])


def tensors(encoding: Encoding, found: Encoded) -> list[Tensor]:
    """The parts as torch tensors of the types and shapes that `encoded` names."""
    rows = len(found.scale)
    width = found.codes.shape[1] * (8 if encoding in FOUR_BIT else 1)
    arrays = encoded(encoding, rows, width)
    return [as_torch(*item) for item in zip(found.parts, arrays, found.parts.values(), strict=True)]


def decoded(encoding: Encoding, matrix: Tensor) -> Tensor:
    return decode(encoding, *tensors(encoding, encode(encoding, bits_of(matrix))))


def normal(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_fp8_rounds_as_torch_does_bit_for_bit() -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 4_000_000, dtype=np.uint32)
    numbers = bits.view(np.float32)
    numbers = numbers[np.abs(numbers) <= 448]
    ties = (e4m3_values()[1:127] + e4m3_values()[:126]) / 2
    exact = np.concatenate([numbers, ties, -ties, np.float32([0.0, -0.0, 448, 2**-10, 3 * 2**-10, 2**-6])])
    expected = torch.from_numpy(exact).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(to_e4m3(exact), expected)


def test_fp8_saturates_where_torch_would_say_nan() -> None:
    beyond = np.float32([449, 464, 1e30, np.inf, -500])
    assert to_e4m3(beyond).tolist() == [0x7E, 0x7E, 0x7E, 0x7E, 0xFE]


def test_the_table_of_fp8_values_is_torchs() -> None:
    expected = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert np.array_equal(e4m3_values()[:127], expected.numpy())


@pytest.mark.parametrize("curve", CURVES)
def test_a_codebook_is_the_references(curve: float) -> None:
    expected = reference_codebook(torch.tensor([curve], dtype=torch.bfloat16))[0]
    assert codebook(curve).tolist() == expected[:8].tolist() == (-expected[8:]).tolist()


@pytest.mark.parametrize("encoding", FOUR_BIT)
@pytest.mark.parametrize("width", WIDTHS)
def test_words_unpack_to_the_codes_they_were_made_of(encoding: Encoding, width: int) -> None:
    codes = np.random.default_rng(width).integers(0, 16, (5, width), dtype=np.uint8)
    words = torch.from_numpy(to_words(encoding, codes)).view(torch.uint32)
    assert np.array_equal(unpacked(encoding, words).numpy(), codes)


@pytest.mark.parametrize("encoding", CODED)
@pytest.mark.parametrize("width", WIDTHS)
def test_normal_weights_come_back_within_the_encodings_error(encoding: Encoding, width: int) -> None:
    matrix = normal(48, width) * torch.logspace(-6, 3, 48).unsqueeze(1)
    matrix = matrix.bfloat16().float()
    found = decoded(encoding, matrix)
    scales = matrix.norm(dim=1, keepdim=True)
    assert relative(found / scales, matrix / scales) < MOST[encoding]


@pytest.mark.parametrize("encoding", CODED)
def test_every_weight_gets_the_nearest_of_the_values_there_are(encoding: Encoding) -> None:
    matrix = normal(3, 512, seed=2)
    parts = tensors(encoding, encode(encoding, bits_of(matrix)))
    scale = parts[1].double().unsqueeze(1)
    found = (decode(encoding, *parts).double() - matrix).abs()
    if encoding == "int4-codebook":
        choices = reference_codebook(parts[2]) * parts[1].unsqueeze(1)  # [R, 16], rounded as `decode` rounds
        best = (matrix.unsqueeze(2).double() - choices.unsqueeze(1)).abs().amin(2)
        assert torch.equal(found, best)
        return
    if encoding == "nvfp4":
        unit = parts[2].double().repeat_interleave(16, 1) * scale
        grid = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    else:
        unit, grid = scale, torch.from_numpy(e4m3_values()[:127]).double()
    best = ((matrix.abs().double() / unit).unsqueeze(2) - grid).abs().amin(2) * unit
    assert bool((found <= best * (1 + 1e-5) + 1e-7).all())  # quotients are rounded to FP32 before codes are


@pytest.mark.parametrize("encoding", CODED)
def test_what_the_encoding_can_say_exactly_stays_as_it_is(encoding: Encoding) -> None:
    rows, width = 4, 512
    generator = np.random.default_rng(3)
    if encoding == "fp8-e4m3":
        codes = torch.from_numpy(generator.integers(0, 0x7E, (rows, width), dtype=np.uint8))
        codes[:, 0] = 0x7E  # each row's largest: 448
        codes = codes.view(torch.float8_e4m3fn)
        table = None
    else:
        numbers = generator.integers(0, 16, (rows, width), dtype=np.uint8)
        numbers[:, ::16] = 7  # each block's largest
        codes = torch.from_numpy(to_words(encoding, numbers)).view(torch.uint32)
        table = torch.full((rows, width // 16), 448.0).to(torch.float8_e4m3fn)
    if encoding == "int4-codebook":
        table = torch.tensor([CURVES[3]] * rows, dtype=torch.bfloat16)
    matrix = values(encoding, codes, table)  # at a scale of 1, bf16 numbers all
    found = decoded(encoding, matrix)
    if encoding == "int4-codebook":  # the scale is a least squares one, judged by a histogram
        assert relative(found, matrix) < 0.04
    else:
        assert torch.equal(found, matrix)


@pytest.mark.parametrize("encoding", CODED)
def test_rows_of_zeros_stay_zero_and_leave_their_neighbours_alone(encoding: Encoding) -> None:
    matrix = normal(5, 256)
    alone = decoded(encoding, matrix[:2])
    matrix[2:] = 0
    found = decoded(encoding, matrix)
    assert torch.equal(found[:2], alone)
    assert bool((found[2:] == 0).all())


@pytest.mark.parametrize("encoding", CODED)
@pytest.mark.parametrize("huge", [1e4, 3.38e38, -3.38e38])
def test_one_huge_value_stays_within_its_step_and_harms_no_other_row(encoding: Encoding, huge: float) -> None:
    matrix = normal(3, 512)
    alone = decoded(encoding, matrix)
    matrix[1, 100] = huge
    matrix = matrix.bfloat16().float()
    found = decoded(encoding, matrix)
    assert bool(found.isfinite().all())
    assert torch.equal(found[[0, 2]], alone[[0, 2]])
    # int4 has no zero: the 511 others are as small as it can say, and pull the scale down: measured 0.046.
    assert abs(float(found[1, 100] / matrix[1, 100]) - 1) < (0.05 if encoding == "int4-codebook" else 1e-6)


@pytest.mark.parametrize("encoding", CODED)
def test_the_smallest_numbers_of_bf16_are_encoded_finitely(encoding: Encoding) -> None:
    bits = np.random.default_rng(4).integers(0, 4, (4, 256), dtype=np.uint16)  # subnormals: up to 3 · 2^-133
    found = decode(encoding, *tensors(encoding, encode(encoding, bits)))
    assert bool(found.isfinite().all())
    assert float(found.abs().max()) < 4 * 2.0**-133


@pytest.mark.parametrize("encoding", CODED)
def test_heavy_tails_choose_other_scales_and_keep_the_error_small(encoding: Encoding) -> None:
    matrix = torch.distributions.Laplace(0.0, 1.0).icdf(
        torch.rand(64, 1024, generator=torch.Generator().manual_seed(1)).clamp(1e-6, 1 - 1e-6)
    )
    # Measured: fp8 0.0265, int4 0.126, nvfp4 0.097; evenly spaced 16 values up to the largest have 0.23.
    most: dict[Encoding, float] = {"fp8-e4m3": 0.028, "int4-codebook": 0.13, "nvfp4": 0.10}
    matrix = matrix.bfloat16().float()
    assert relative(decoded(encoding, matrix), matrix) < most[encoding]


@pytest.mark.parametrize("encoding", CODED)
def test_a_row_is_encoded_the_same_whatever_block_it_comes_in(encoding: Encoding) -> None:
    bits = bits_of(normal(37, 768))
    whole = encode(encoding, bits)
    for name, part in whole.parts.items():
        pieces = [encode(encoding, bits[start : start + 5]).parts[name] for start in range(0, 37, 5)]
        assert np.array_equal(np.concatenate(pieces), part)


@pytest.mark.parametrize("chunk", [2 * 256, 3 * 256 + 2, 4 << 20])
def test_chunks_of_any_size_become_blocks_of_whole_rows(chunk: int) -> None:
    numbers = np.random.default_rng(5).integers(0, 2**16, (2500, 256)).astype("<u2")
    data = numbers.tobytes()
    blocks = list(row_blocks((data[i : i + chunk] for i in range(0, len(data), chunk)), 256))
    assert all(block.shape[1] == 256 and block.size <= BLOCK for block in blocks)
    assert np.array_equal(np.concatenate(blocks), numbers)


def test_bf16_has_no_codes() -> None:
    with pytest.raises(ValueError, match="bf16 has no codes"):
        encode("bf16", np.zeros((1, 256), np.uint16))
