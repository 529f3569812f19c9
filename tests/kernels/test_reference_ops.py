"""Each operation's reference against torch's own functions in FP64, in every storage type the packs have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kernels.attention.reference import attend, norm_rotate, rotary_rows, rotary_table
from kernels.down_residual.reference import down_residual
from kernels.embedding.reference import embedding
from kernels.linear.reference import BLOCK, linear
from kernels.output_residual.reference import output_residual
from kernels.rmsnorm.reference import rmsnorm
from kernels.rmsnorm_gate_up_silu.reference import rmsnorm_gate_up_silu
from kernels.rmsnorm_head_argmax.reference import rmsnorm_head_argmax
from kernels.rmsnorm_qkv.reference import rmsnorm_qkv

ROWS, HIDDEN, EPS = 5, 96, 1e-6
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3}  # one rounding to BF16 is 2^-8 = 3.9e-3


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max() / expected.abs().max())


def norm64(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x.double(), (x.shape[-1],), weight.double(), EPS)


@TYPES
def test_linear_accumulates_in_fp32_and_loses_no_row_at_a_block_edge(
    random: torch.Generator, dtype: torch.dtype
) -> None:
    inner = 2048
    rows = BLOCK // inner
    for count in (1, rows, rows + 1, 2 * rows + 3):
        x, weight = normal(random, ROWS, inner, dtype=dtype), normal(random, count, inner)
        found = linear(x, weight)
        assert found.dtype == torch.float32
        assert error(found, functional.linear(x.double(), weight.double())) < 2e-6


@TYPES
def test_rmsnorm_is_torchs(random: torch.Generator, dtype: torch.dtype) -> None:
    x, weight = normal(random, ROWS, HIDDEN, dtype=dtype), normal(random, HIDDEN)
    assert error(rmsnorm(x, weight, EPS), norm64(x, weight)) < 2e-6


@TYPES
def test_embedding_takes_rows_unchanged(random: torch.Generator, dtype: torch.dtype) -> None:
    table = normal(random, 10, HIDDEN)
    found = embedding(torch.tensor([3, 0, 9, 3]), table, dtype)
    assert found.dtype == dtype
    assert torch.equal(found, torch.stack([table[3], table[0], table[9], table[3]]).to(dtype))


@TYPES
def test_rmsnorm_qkv_is_norm_then_projection(random: torch.Generator, dtype: torch.dtype) -> None:
    x, norm, weight = (
        normal(random, ROWS, HIDDEN, dtype=dtype),
        normal(random, HIDDEN),
        normal(random, 160, HIDDEN),
    )
    found = rmsnorm_qkv(x, norm, weight, EPS)
    assert found.dtype == dtype
    assert error(found, functional.linear(norm64(x, norm), weight.double())) < TOLERANCE[dtype]


@TYPES
@pytest.mark.parametrize("operation", [output_residual, down_residual])
def test_projections_add_to_the_residual(
    random: torch.Generator, dtype: torch.dtype, operation: object
) -> None:
    inner = normal(random, ROWS, 160, dtype=dtype)
    weight, residual = normal(random, HIDDEN, 160), normal(random, ROWS, HIDDEN, dtype=dtype)
    found = operation(inner, weight, residual)  # type: ignore[operator]
    expected = residual.double() + functional.linear(inner.double(), weight.double())
    assert found.dtype == dtype
    assert error(found, expected) < TOLERANCE[dtype]


@TYPES
def test_gate_rows_come_before_up_rows(random: torch.Generator, dtype: torch.dtype) -> None:
    x, norm = normal(random, ROWS, HIDDEN, dtype=dtype), normal(random, HIDDEN)
    gate, up = normal(random, 64, HIDDEN), normal(random, 64, HIDDEN)
    found = rmsnorm_gate_up_silu(x, norm, torch.cat((gate, up)), EPS)
    normed = norm64(x, norm)
    expected = functional.silu(normed @ gate.double().T) * (normed @ up.double().T)
    assert found.dtype == dtype
    assert error(found, expected) < TOLERANCE[dtype]


@TYPES
def test_the_head_gives_fp32_logits_and_the_lowest_of_equal_maxima(
    random: torch.Generator, dtype: torch.dtype
) -> None:
    x, norm, head = (
        normal(random, ROWS, HIDDEN, dtype=dtype),
        normal(random, HIDDEN),
        normal(random, 200, HIDDEN),
    )
    logits, _ = rmsnorm_head_argmax(x, norm, head, EPS)
    assert logits.dtype == torch.float32
    assert error(logits, functional.linear(norm64(x, norm), head.double())) < 2e-6
    best = int(logits[0].argmax())
    head[[150, 190]] = head[best].clone()
    _, tokens = rmsnorm_head_argmax(x[:1], norm, head, EPS)
    assert int(tokens[0]) == min(best, 150)


def rotated64(x: Tensor, position: int, theta: float) -> Tensor:
    """RoPE as complex numbers: dimension i and i + D/2 are one number, turned by position · theta^(-2i/D)."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    angle = position * theta ** (-2 * torch.arange(half, dtype=torch.float64) / x.shape[-1])
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)


@TYPES
def test_heads_are_normed_one_by_one_and_turned_to_their_position(
    random: torch.Generator, dtype: torch.dtype
) -> None:
    heads, weight = normal(random, 3, 6, 32, dtype=dtype), normal(random, 6, 32)
    positions = (0, 7, 999)
    cos, sin = rotary_rows(rotary_table(32, 10000.0, 1000), torch.tensor(positions))
    found = norm_rotate(heads, weight, cos, sin, EPS)
    normed = torch.stack([norm64(heads[:, head], weight[head]) for head in range(6)], dim=1)
    expected = torch.stack(
        [rotated64(normed[row], position, 10000.0) for row, position in enumerate(positions)]
    )
    assert found.dtype == dtype
    assert error(found, expected) < max(TOLERANCE[dtype], 6e-5)  # FP32 angles: 999 rad · 2^-24


@TYPES
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 33), (8, 8), (8, 21)])
def test_attention_is_causal_grouped_query_attention(
    random: torch.Generator, rows: int, length: int, dtype: torch.dtype
) -> None:
    query = normal(random, rows, 6, 16, dtype=dtype)
    keys, values = normal(random, 2, length, 16, dtype=dtype), normal(random, 2, length, 16, dtype=dtype)
    seen = torch.ones(rows, length, dtype=torch.bool).tril(length - rows)
    expected = functional.scaled_dot_product_attention(
        query.double().transpose(0, 1),
        keys.double().repeat_interleave(3, 0),
        values.double().repeat_interleave(3, 0),
        attn_mask=seen,
    )
    found = attend(query, keys, values)
    assert found.dtype == dtype
    assert error(found, expected.transpose(0, 1).reshape(rows, 96)) < TOLERANCE[dtype]


def test_a_row_of_attention_ignores_what_lies_behind_it(random: torch.Generator) -> None:
    query = normal(random, 4, 2, 8, dtype=torch.float32)
    keys, values = (normal(random, 1, 10, 8, dtype=torch.float32) for _ in range(2))
    before = attend(query, keys, values)
    keys[:, 8:], values[:, 8:] = 50.0, -1e30
    after = attend(query, keys, values)
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2:], after[2:])
