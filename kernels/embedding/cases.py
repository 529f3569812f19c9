"""What the embedding look-up is proved on. Rows of the table that no token names are NaN."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from kernels.case import (
    DTYPES,
    EXACT,
    VECTOR_F32,
    Case,
    Data,
    Draw,
    Expected,
    MachineCode,
    arrays,
    block_squares,
    kernel_function,
    total_bytes,
)
from kernels.spec import KernelSpec


def cases(spec: KernelSpec) -> tuple[Case, ...]:
    """First and last token of the vocabulary, and random ones."""
    return tuple(_one(spec) if kernel_function(spec) == "embedding" else _rows(spec))


def machine_code(spec: KernelSpec, target: str) -> MachineCode:
    """A copy: nothing but loads and stores, no wider than its columns over 128 threads need."""
    return MachineCode(access_bytes=8 if kernel_function(spec) == "embedding" else 4)


def _one(spec: KernelSpec) -> Iterator[Case]:
    a = arrays(spec)
    rows, hidden = a["table"].shape

    def data(draw: Draw, token: int) -> Data:
        table = torch.full((rows, hidden), torch.nan, dtype=DTYPES[a["table"].dtype], device=draw.device)
        table[token] = draw.stream(1, hidden)[0].to(table.dtype)
        return {"tokens": draw.given([token]), "table": table}

    def expected(given: Data) -> dict[str, Expected]:
        row = given["table"][given["tokens"].long()].float()
        return {
            "residual": Expected(value=row.double(), tolerance=EXACT),
            "hidden": Expected(value=row.bfloat16().double(), tolerance=EXACT),
        }

    moved = total_bytes(spec) - a["table"].nbytes + a["table"].nbytes // rows
    for name, token in (("first", 0), ("middle", rows // 2 + 1), ("last", rows - 1)):
        yield Case(name=name, data=partial(data, token=token), expected=expected, bytes_moved=moved, flops=0)


def _rows(spec: KernelSpec) -> Iterator[Case]:
    a = arrays(spec)
    (vocab, hidden), t = a["table"].shape, a["tokens"].shape[0]

    def data(draw: Draw) -> Data:
        tokens = draw.integers(a["tokens"], 0, vocab)
        if t > 1:
            tokens[0], tokens[-1], tokens[1] = 0, vocab - 1, tokens[2]
        table = torch.full((vocab, hidden), torch.nan, dtype=DTYPES[a["table"].dtype], device=draw.device)
        table[tokens.long()] = draw.stream(t, hidden).to(table.dtype)
        return {"tokens": tokens, "table": table, "norm": draw.gain(hidden)}

    def expected(given: Data) -> dict[str, Expected]:
        stream = given["table"][given["tokens"].long()].float()
        squares = block_squares(stream.double(), a["squares"].shape[0])
        return {
            "residual": Expected(value=stream.double(), tolerance=EXACT),
            "z": Expected(value=(stream * given["norm"].float()).bfloat16().double(), tolerance=EXACT),
            "squares": Expected(value=squares, tolerance=VECTOR_F32),
        }

    yield Case(
        name="random",
        data=data,
        expected=expected,
        bytes_moved=total_bytes(spec) - a["table"].nbytes + a["table"].nbytes // vocab * t,
        flops=3 * t * hidden,
        rows={"tokens": 0, "residual": 0, "z": 0, "squares": 1} if t > 1 else {},
        kept=(0, t // 2, t - 1) if t > 1 else (),
    )
