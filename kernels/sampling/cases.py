"""What sampling is proved on. A draw is in the middle of a token's share, so the token must be the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kernels.case import Case, Data, Draw, Expected, MachineCode, arrays, constant
from kernels.rmsnorm_head_argmax.cases import allowed, fed_back, lists, parts_of, row_slots
from kernels.sampling.reference import kept_weights, sample
from kernels.spec import KernelSpec

PART = 1024  # of the vocabulary, as `argmax_parts` leaves it
SETTINGS = (  # temperature, top-k, top-p, and which token to draw: of the kept ones by weight, or the first
    (0.0, 0, 1.0, 0),
    (0.7, 0, 1.0, 0),
    (1.0, 50, 1.0, 3),
    (0.7, 0, 0.9, 2),
    (1.3, 20, 0.8, 1),
    (1.0, 1, 1.0, 0),
    (2.0, 7, 0.5, 1),
    (0.8, 0, 0.99, -1),
)


def cases(spec: KernelSpec) -> tuple[Case, ...]:
    """Each slot has settings of its own; one is not live; the best tokens of even slots are banned."""
    return tuple(_cases(spec))


def machine_code(spec: KernelSpec, target: str) -> MachineCode:
    """Exponentials, and logits read four at a time."""
    return MachineCode(opcodes=("MUFU.EX2",), access_bytes=16)


def between(logits: Tensor, temperature: float, top_k: int, top_p: float) -> float:
    """A top-p near this one, halfway between two tokens: rounding does not decide what is kept."""
    if top_p >= 1.0:
        return top_p
    weights = kept_weights(logits, temperature, top_k, 1.0).sort(descending=True).values
    share = weights.cumsum(0) / weights.sum()
    edge = int((share >= top_p).int().argmax())
    below = float(share[edge - 1]) if edge else 0.0
    return (below + float(share[edge])) / 2


def draw_of(logits: Tensor, temperature: float, top_k: int, top_p: float, rank: int) -> float:
    """The draw in the middle of the share of the kept token of this rank; 0 for -1, the first kept one."""
    if rank < 0:
        return 0.0
    weights = kept_weights(logits, temperature, top_k, top_p)
    token = int(weights.argsort(descending=True)[min(rank, int((weights > 0).sum()) - 1)])
    return float((weights[:token].sum() + weights[token] / 2) / weights.sum())


def _cases(spec: KernelSpec) -> Iterator[Case]:
    a, most = arrays(spec), spec.grid[0]
    vocab, length, advance = (
        a["logits"].shape[1],
        int(constant(spec, "LENGTH")),
        int(constant(spec, "ADVANCE")),
    )

    def data(draw: Draw, slots: list[int], rows: int) -> Data:
        logits = draw.normal(a["logits"], 4.0)
        drawn, until, banned = lists(draw, logits, slots[:rows], a["banned"].shape[1])
        chosen_from = allowed(logits[:rows], draw.given(slots[:rows]), drawn, until, banned)
        best = torch.full(a["best"].shape, torch.nan, device=draw.device)
        where = torch.full(a["where"].shape, -1, dtype=torch.int32, device=draw.device)
        best[:rows], where[:rows] = parts_of(chosen_from, PART)
        top_p, uniform = [1.0] * 8, [0.5] * 8
        for row, slot in enumerate(slots[:rows]):
            heat, limit, nucleus, rank = SETTINGS[slot]
            if heat > 0.0:
                top_p[slot] = between(chosen_from[row], heat, limit, nucleus)
                uniform[slot] = draw_of(chosen_from[row], heat, limit, top_p[slot], rank)
        logits[rows:] = torch.nan
        return {
            "logits": logits,
            "best": best,
            "where": where,
            "slots": draw.given(slots),
            "temperature": draw.given([setting[0] for setting in SETTINGS], "f32"),
            "top_k": draw.given([setting[1] for setting in SETTINGS]),
            "top_p": draw.given(top_p, "f32"),
            "uniform": draw.given(uniform, "f32"),
            "until": until,
            "banned": banned,
            "parts": draw.given([-(-vocab // int(constant(spec, "WIDTH")))]),
            "tokens": draw.given([11, 12, 13, 14, 15, 16, 17, 18]),
            "positions": draw.given([3, 0, length - 1, 5, length // 2, 7, -1, 64]),
            "drawn": drawn,
        }

    def expected(given: Data, rows: int) -> dict[str, Expected]:
        open_ = allowed(
            given["logits"][:rows], given["slots"][:rows], given["drawn"], given["until"], given["banned"]
        )
        settings = [given[name].tolist() for name in ("temperature", "top_k", "top_p", "uniform")]
        tokens = [
            sample(open_[row], *(values[slot] for values in settings))
            for row, slot in enumerate(given["slots"][:rows].tolist())
        ]
        return fed_back(given, tokens, length, advance, open_.device)

    for rows in sorted({1, most}):
        for order, slots in row_slots(spec, rows):
            plain = order == "in order" and rows > 1
            yield Case(
                name=f"mixed {rows} {order}",
                data=partial(data, slots=slots, rows=rows),
                expected=partial(expected, rows=rows),
                bytes_moved=rows * vocab * 4,
                flops=rows * vocab * 4,
                grid=(rows, 1, 1),
                rows={"logits": 0, "best": 0, "where": 0, "tokens": 0, "chosen": 0} if plain else {},
                kept=(1, 3, 4) if plain else (),
                others=0.0,
            )
