"""What the greedy choice and its feedback are proved on. Everything is compared bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kernels.case import Case, Data, Draw, Expected, MachineCode, arrays, constant, kernel_function
from kernels.spec import Array, KernelSpec

LOOSE = 2147483647


def cases(spec: KernelSpec) -> tuple[Case, ...]:
    """Ties, banned tokens, slots that are not live or full, rows in another order than slots."""
    return tuple(_parts(spec) if kernel_function(spec) == "argmax_parts" else _choose(spec))


def machine_code(spec: KernelSpec, target: str) -> MachineCode:
    """Comparisons; the logits are read four at a time."""
    return MachineCode(opcodes=("FMNMX",), access_bytes=16 if kernel_function(spec) == "argmax_parts" else 4)


def allowed(logits: Tensor, slots: Tensor, drawn: Tensor, until: Tensor, banned: Tensor) -> Tensor:
    """Logits [rows, V] with what each row's slot bans minus infinity."""
    result = logits.clone()
    for row, slot in enumerate(slots.tolist()):
        if drawn[slot] < until[slot]:
            for token in banned[slot].tolist():
                if 0 <= token < logits.shape[1]:
                    result[row, token] = -math.inf
    return result


def parts_of(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Maximum and its lowest index of each `width` columns: f32 and i32 [rows, parts]."""
    rows, vocab = logits.shape
    padded = torch.nn.functional.pad(logits, (0, -vocab % width), value=-math.inf).view(rows, -1, width)
    best = padded.amax(-1)
    index = torch.arange(width, device=logits.device)
    lowest = torch.where(padded == best.unsqueeze(-1), index, LOOSE).amin(
        -1
    )  # torch's argmax takes any of them
    start = torch.arange(padded.shape[1], device=logits.device) * width
    return best, (lowest + start).int()


def left_by_parts(array: Array, logits: Tensor, width: int) -> Data:
    """best, of the shape of `array`, and where as `argmax_parts` leaves them of logits [rows, V].

    Rows that the logits do not have are NaN and -1.
    """
    best = torch.full(array.shape, torch.nan, device=logits.device)
    where = torch.full(array.shape, -1, dtype=torch.int32, device=logits.device)
    best[: len(logits)], where[: len(logits)] = parts_of(logits, width)
    return {"best": best, "where": where}


def lists(draw: Draw, logits: Tensor, slots: list[int], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """drawn, until and banned: even slots ban their row's best tokens still, odd ones no longer do."""
    total = 8
    drawn, until = draw.given([3] * total), draw.given([4 if slot % 2 == 0 else 3 for slot in range(total)])
    banned = draw.given([[-1] * count] * total)  # type: ignore[arg-type]
    for row, slot in enumerate(slots):
        best = logits[row].topk(count // 2).indices.int()
        banned[slot, : count // 2] = best
    banned[:, -1] = logits.shape[1] - 1
    return drawn, until, banned


def row_slots(spec: KernelSpec, rows: int) -> tuple[tuple[str, list[int]], ...]:
    """Which slot each row is for: those of a step are in order, those behind prompts in any."""
    count = arrays(spec)["slots"].shape[0]
    turned = [(3 * i + 2) % count for i in range(rows)] + [0] * (count - rows)
    return ("in order", list(range(count))), ("turned", turned)


def _parts(spec: KernelSpec) -> Iterator[Case]:
    a, width, most = arrays(spec), int(constant(spec, "WIDTH")), spec.grid[1]
    vocab, count = a["logits"].shape[1], a["banned"].shape[1]

    def data(draw: Draw, slots: list[int], rows: int, levels: float) -> Data:
        logits = draw.normal(a["logits"], 4.0)
        if levels:
            logits = (logits / levels).round() * levels
        logits[:, -1] = logits[:, : vocab - 1].amax(1)  # a tie with the very last token
        logits[rows:] = torch.nan
        drawn, until, banned = lists(draw, logits, slots[:rows], count)
        return {
            "logits": logits,
            "slots": draw.given(slots),
            "drawn": drawn,
            "until": until,
            "banned": banned,
        }

    def expected(given: Data, rows: int) -> dict[str, Expected]:
        slots = given["slots"][:rows]
        open_ = allowed(given["logits"][:rows], slots, given["drawn"], given["until"], given["banned"])
        left = left_by_parts(a["best"], open_, width)
        asked = torch.zeros(a["best"].shape, dtype=torch.bool, device=slots.device)
        asked[:rows] = True
        return {name: Expected(value=value, where=asked) for name, value in left.items()}

    for rows in sorted({1, most}):
        for order, slots in row_slots(spec, rows):
            for kind, levels in (("random", 0.0), ("ties", 2.0)):
                plain = order == "in order" and rows > 1
                yield Case(
                    name=f"{kind} {rows} {order}",
                    data=partial(data, slots=slots, rows=rows, levels=levels),
                    expected=partial(expected, rows=rows),
                    bytes_moved=rows * (vocab * 4 + a["best"].shape[1] * 8),
                    flops=rows * vocab,
                    grid=(spec.grid[0], rows, 1),
                    rows={"logits": 0, "best": 0, "where": 0} if plain else {},
                    kept=(0, 3, 7) if plain else (),
                )


def fed_back(
    given: Data, tokens_of_rows: list[int], length: int, advance: int, device: torch.device
) -> dict[str, Expected]:
    """The streams' state once each row's slot has taken its token."""
    state = {name: given[name].clone() for name in ("tokens", "positions", "drawn")}
    chosen = torch.zeros(8, dtype=torch.int32, device=device)
    for row, token in enumerate(tokens_of_rows):
        slot = int(given["slots"][row])
        position = int(given["positions"][slot])
        live = position >= 0 and position + advance <= length
        chosen[row] = token if live else -1
        if live:
            state["tokens"][slot] = token
            state["positions"][slot] = position + advance
            state["drawn"][slot] += 1
    rows = torch.arange(8, device=device) < len(tokens_of_rows)
    return {name: Expected(value=value) for name, value in state.items()} | {
        "chosen": Expected(value=chosen, where=rows)
    }


def state(draw: Draw, length: int) -> Data:
    """Eight slots: live, at the start, at the last position, full, and not live."""
    return {
        "tokens": draw.given([11, 12, 13, 14, 15, 16, 17, 18]),
        "positions": draw.given([5, 0, length - 1, -1, length // 2, 7, length, 63]),
        "drawn": draw.given([0, 1, 2, 3, 4, 5, 6, 7]),
    }


def _choose(spec: KernelSpec) -> Iterator[Case]:
    a, most = arrays(spec), spec.grid[0]
    parts, length, advance = a["best"].shape[1], int(constant(spec, "LENGTH")), int(constant(spec, "ADVANCE"))

    def data(draw: Draw, slots: list[int], ties: bool) -> Data:
        best = draw.normal(a["best"], 4.0)
        best = best.round() if ties else best
        where = draw.integers(a["where"], 0, 1024) + 1024 * torch.arange(parts, device=draw.device).int()
        if ties:
            best[:, -1] = best.amax(1)
        return {"best": best, "where": where, "slots": draw.given(slots), **state(draw, length)}

    def expected(given: Data, rows: int) -> dict[str, Expected]:
        best, where = given["best"][:rows], given["where"][:rows]
        ids = torch.where(best == best.amax(1, keepdim=True), where, LOOSE).amin(1)
        return fed_back(given, ids.tolist(), length, advance, best.device)

    for rows in sorted({1, most}):
        for order, slots in row_slots(spec, rows):
            for ties in (False, True):
                plain = order == "in order" and rows > 1
                yield Case(
                    name=f"{'ties' if ties else 'random'} {rows} {order}",
                    data=partial(data, slots=slots, ties=ties),
                    expected=partial(expected, rows=rows),
                    bytes_moved=rows * (parts * 8 + 32),
                    flops=rows * parts,
                    grid=(rows, 1, 1),
                    rows={"best": 0, "where": 0, "tokens": 0, "chosen": 0} if plain else {},
                    kept=(0, 4, 7) if plain else (),
                )
