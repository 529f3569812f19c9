"""What sampling is proved on: each launch of the search alone, and the draw behind the last one.

A launch gets what FP64 leaves of the launches before it, so all of them together are proved if each one is;
tests/kernels/test_cases.py holds the chain's end to the reference. Thresholds and draws lie halfway between
two tokens, so rounding decides nothing and keys and tokens must be the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kernels.case import (
    Case,
    Data,
    Draw,
    Expected,
    MachineCode,
    Tolerance,
    arrays,
    constant,
    kernel_function,
)
from kernels.rmsnorm_head_argmax.cases import allowed, fed_back, left_by_parts, lists, row_slots, state
from kernels.sampling.reference import kept_weights, sample
from kernels.spec import KernelSpec

LEAST, DIGITS, STEPS = -(2**31), 8, 16
ALL = 1 << 30  # a top-k as large as the vocabulary
FIRST, LAST, ONE = -1, -2, -3  # draws: 0, the largest float below 1, and what is rounded up to 1: the same
DRAWS = {FIRST: 0.0, LAST: 1.0 - 2.0**-24, ONE: 1.0}
SUMS = Tolerance(
    norm=2.0**-17,
    element=2.0**-16,
    reason="f32 weights: exp2's argument is rounded twice, so w · ln(1/w) · 2^-22 at most; sums are trees",
)
GOAL = Tolerance(norm=2.0**-21, element=2.0**-21, reason="a tree over the parts' sums, and one product")


@dataclass(frozen=True, slots=True)
class Setting:
    """One slot's settings, and which token to draw: of the kept ones by weight, or one of `DRAWS`."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    rank: int = 0


GREEDY = Setting(0.0)
SETTINGS = {
    "mixed": (
        GREEDY,
        Setting(0.7),
        Setting(1.0, top_k=50, rank=3),
        Setting(0.7, top_p=0.9, rank=2),
        Setting(1.3, top_k=20, top_p=0.8, rank=1),
        Setting(1.0, top_k=1),
        Setting(2.0, top_k=7, top_p=0.5, rank=1),
        Setting(0.8, top_p=0.99, rank=FIRST),
    ),
    "top-k": (
        Setting(1.0, top_k=1, rank=LAST),
        Setting(1.0, top_k=2, rank=1),
        Setting(1.0, top_k=50, rank=5),
        Setting(1.0, top_k=ALL, rank=1),
        Setting(3.0, top_k=ALL - 1, rank=1),
        Setting(1.0, top_k=1000, rank=2),
        GREEDY,
        Setting(2.0, top_k=7, rank=ONE),
    ),
    "top-p": (
        Setting(1.0, top_p=1e-6),
        Setting(1.0, top_p=0.5, rank=1),
        Setting(1.0, top_p=0.95, rank=2),
        Setting(2.0, top_p=0.95, rank=FIRST),
        Setting(1.0, top_k=1000, top_p=0.95, rank=3),
        Setting(1.0, top_k=2, top_p=0.5, rank=LAST),
        Setting(1.5, top_p=0.7, rank=1),
        GREEDY,
    ),
    "extreme": (
        Setting(0.01),
        Setting(100.0, rank=4),
        Setting(100.0, top_p=0.5, rank=9),
        Setting(0.01, top_k=50, top_p=0.9),
        Setting(100.0, top_k=50, rank=LAST),
        Setting(100.0, top_k=2000, top_p=0.95, rank=FIRST),
        Setting(1e-39),
        Setting(100.0, top_p=1e-6, rank=LAST),
    ),
    "nothing": (
        Setting(1.0, top_p=0.0),
        Setting(0.7, top_k=50, top_p=0.0, rank=LAST),
        GREEDY,
        *[Setting(1.0, top_p=0.0, rank=FIRST)] * 5,
    ),
}
# By name: settings, and what becomes of random logits of deviation 4.
INPUTS = {
    "mixed": ("mixed", 0.0),
    "top-k": ("top-k", 0.0),
    "top-p": ("top-p", 0.0),
    "extreme": ("extreme", 0.0),
    "nothing": ("nothing", 0.0),
    "ties": ("mixed", 2.0),
    "ties top-k": ("top-k", 2.0),
    "ties top-p": ("top-p", 2.0),
    "equal": ("top-p", math.inf),
    "equal mixed": ("mixed", math.inf),
}
SHOWN = (0, 1, 3, 7, 8, 9, 12, 15)  # launches of the search that have cases


def cases(spec: KernelSpec) -> tuple[Case, ...]:
    """Each slot has settings of its own; one is not live; the best tokens of even slots are banned."""
    return tuple(_search(spec) if kernel_function(spec) == "search_digit" else _draw(spec))


def machine_code(spec: KernelSpec, target: str) -> MachineCode:
    """Exponentials, and logits read four at a time."""
    return MachineCode(opcodes=("MUFU.EX2",), access_bytes=16)


def between(logits: Tensor, temperature: float, top_k: int, top_p: float) -> float:
    """A top-p near this one, halfway between two tokens: rounding does not decide what is kept."""
    if not 0.0 < top_p < 1.0:
        return top_p
    weights = kept_weights(logits, temperature, top_k, 1.0).sort(descending=True).values
    share = weights.cumsum(0) / weights.sum()
    edge = int((share >= top_p).int().argmax())
    below = float(share[edge - 1]) if edge else 0.0
    return (below + float(share[edge])) / 2


def draw_of(logits: Tensor, temperature: float, top_k: int, top_p: float, rank: int) -> float:
    """The draw in the middle of the share of the kept token of this rank, or the draw that it names."""
    if rank in DRAWS:
        return DRAWS[rank]
    weights = kept_weights(logits, temperature, top_k, top_p)
    token = int(weights.argsort(descending=True)[min(rank, int((weights > 0).sum()) - 1)])
    return float((weights[:token].sum() + weights[token] / 2) / weights.sum())


# The search in FP64.


def keys_of(logits: Tensor) -> Tensor:
    """Integers that order as the f32 values do, the two zeros being one."""
    bits = (logits + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()


@dataclass(frozen=True, slots=True)
class Row:
    """What every launch has of one row: its logits [V], banned ones minus infinity, and settings in force.

    `top_k` 0 and `top_p` 1 are none; `width`: tokens of a part.
    """

    logits: Tensor
    temperature: float
    top_k: int
    top_p: float
    width: int

    @property
    def parts(self) -> int:
        """How many there are."""
        return -(-len(self.logits) // self.width)

    def limited(self, step: int) -> bool:
        """Whether the search that this launch belongs to has anything to find."""
        return 0 < self.top_k < len(self.logits) if step < DIGITS else self.top_p < 1.0

    def makes_sums(self, step: int) -> bool:
        """Whether this launch leaves sums: where there is something to find, and the last one always."""
        return self.limited(step) or step == STEPS - 1

    def sums(self, step: int, start: int, edge: int) -> Tensor:
        """FP64 [parts, 16]: count or weight of each part's tokens at or above each try."""
        x = torch.nn.functional.pad(self.logits, (0, -len(self.logits) % self.width), value=-math.inf)
        keys = keys_of(x).view(-1, self.width)
        weights = torch.ones_like(keys, dtype=torch.float64)
        if step >= DIGITS:
            weights = ((x.double() - x.max()) / self.temperature).exp().view(keys.shape)
        tries = [max(edge + (digit << 28 - 4 * (step % DIGITS)), start) for digit in range(16)]
        return torch.stack([torch.where(keys >= least, weights, 0.0).sum(1) for least in tries], dim=1)


@dataclass(frozen=True, slots=True)
class Search:
    """Where the search of a row stands behind `step` launches; `above`: the newest sums there are."""

    step: int
    start: int
    edge: int
    goal: float
    above: Tensor

    def advanced(self, row: Row) -> Search:
        """Behind one more launch."""
        start, edge, goal = self.evaluated(row)
        above = row.sums(self.step, start, edge) if row.makes_sums(self.step) else self.above
        return Search(self.step + 1, start, edge, goal, above)

    def evaluated(self, row: Row) -> tuple[int, int, float]:
        """Start, edge and goal with the last launch's digit taken."""
        start, edge, goal = self.start, self.edge, self.goal
        if self.step and row.limited(self.step - 1):
            totals = self.above.double().sum(0)
            if self.step == DIGITS + 1:
                goal = float(totals[0]) * row.top_p
            target = row.top_k if self.step <= DIGITS else goal
            edge += max(int((totals >= target).sum()) - 1, 0) << 28 - 4 * ((self.step - 1) % DIGITS)
        if self.step == 0:
            return LEAST, LEAST, goal
        return (edge, LEAST, goal) if self.step == DIGITS else (start, edge, goal)


def search_of(row: Row, step: int) -> Search:
    """Behind `step` launches; what nobody may look at is arbitrary."""
    sums = torch.full((row.parts, 16), math.nan, device=row.logits.device)
    search = Search(0, 12, 34, 56.0, sums)
    for _ in range(step):
        search = search.advanced(row)
    return search


# Cases.


@dataclass(frozen=True, slots=True)
class Inputs:
    """What cases of both kernels start from: a name of `INPUTS`, each row's slot, rows that are asked for."""

    spec: KernelSpec
    name: str
    slots: list[int]
    rows: int

    @property
    def width(self) -> int:
        """Tokens of a part."""
        return int(constant(self.spec, "WIDTH"))

    def data(self, draw: Draw, step: int) -> Data:
        """Everything but the streams' state, for the launch behind `step` others."""
        a = arrays(self.spec)
        logits = self._logits(draw)
        drawn, until, banned = lists(draw, logits, self.slots[: self.rows], a["banned"].shape[1])
        chosen_from = allowed(logits[: self.rows], draw.given(self.slots[: self.rows]), drawn, until, banned)
        given = {
            "logits": logits,
            "slots": draw.given(self.slots),
            "drawn": drawn,
            "until": until,
            "banned": banned,
            **left_by_parts(a["best"], chosen_from, self.width),
            **self._settings(draw, chosen_from),
        }
        logits[self.rows :] = torch.nan
        return given | self._searches(given, step)

    def row(self, given: Data, row: int) -> Row:
        """One row as the reference sees it."""
        slot = int(given["slots"][row])
        one, at = slice(row, row + 1), given["slots"][row : row + 1]
        logits = allowed(given["logits"][one], at, given["drawn"], given["until"], given["banned"])[0]
        temperature, top_k, top_p = (given[name][slot].item() for name in ("temperature", "top_k", "top_p"))
        return Row(logits, temperature, int(top_k), top_p, self.width)

    def sampled(self, given: Data) -> list[int]:
        """Rows that are asked for and whose slot is not greedy."""
        return [row for row in range(self.rows) if given["temperature"][given["slots"][row]] > 0]

    def _logits(self, draw: Draw) -> Tensor:
        levels = INPUTS[self.name][1]
        logits = draw.normal(arrays(self.spec)["logits"], 4.0)
        if math.isinf(levels):
            return torch.full_like(logits, 1.5)
        return (logits / levels).round() * levels if levels else logits  # with both zeros

    def _settings(self, draw: Draw, chosen_from: Tensor) -> Data:
        settings, vocab = SETTINGS[INPUTS[self.name][0]], chosen_from.shape[1]
        top_k = [s.top_k if s.top_k < ALL - 1 else vocab - (ALL - s.top_k) for s in settings]
        heat = draw.given([s.temperature for s in settings], "f32")
        top_p, uniform = [1.0] * len(settings), [0.5] * len(settings)
        for row, slot in enumerate(self.slots[: self.rows]):
            if heat[slot] > 0:
                asked = (chosen_from[row], float(heat[slot]), top_k[slot])
                top_p[slot] = float(draw.given([between(*asked, settings[slot].top_p)], "f32"))
                uniform[slot] = draw_of(*asked, top_p[slot], settings[slot].rank)
        return {
            "temperature": heat,
            "top_k": draw.given(top_k),
            "top_p": draw.given(top_p, "f32"),
            "uniform": draw.given(uniform, "f32"),
        }

    def _searches(self, given: Data, step: int) -> Data:
        a, device = arrays(self.spec), given["logits"].device
        search = torch.zeros(a["search"].shape, dtype=torch.int32, device=device)
        goal = torch.zeros(a["goal"].shape, device=device)
        above = torch.full(a["above"].shape, torch.nan, device=device)
        for row in self.sampled(given):
            found = search_of(self.row(given, row), step)
            search[row] = torch.tensor([found.step, found.start, found.edge])
            goal[row], above[row] = found.goal, found.above
        return {"search": search, "goal": goal, "above": above}


def advanced(inputs: Inputs, given: Data) -> dict[str, Expected]:
    """What one launch of the search leaves."""
    search, goal = torch.zeros_like(given["search"]), torch.zeros_like(given["goal"]).double()
    above = torch.zeros_like(given["above"]).double()
    sampled, summed = (torch.zeros(len(goal), dtype=torch.bool, device=goal.device) for _ in range(2))
    for index in inputs.sampled(given):
        row = inputs.row(given, index)
        step, start, edge = given["search"][index].tolist()
        found = Search(step, start, edge, float(given["goal"][index]), given["above"][index]).advanced(row)
        search[index] = torch.tensor([found.step, found.start, found.edge])
        goal[index], sampled[index] = found.goal, True
        if row.makes_sums(step):
            above[index], summed[index] = found.above, True
    return {
        "next_search": Expected(value=search, where=sampled.unsqueeze(1).expand_as(search)),
        "next_goal": Expected(value=goal, where=sampled, tolerance=GOAL),
        "next_above": Expected(value=above, where=summed.view(-1, 1, 1).expand_as(above), tolerance=SUMS),
    }


def _search(spec: KernelSpec) -> Iterator[Case]:
    vocab = arrays(spec)["logits"].shape[1]
    names = ("logits", "best", "search", "goal", "above", "next_search", "next_goal", "next_above")
    taken = {array.name for array in spec.arrays}

    def data(draw: Draw, inputs: Inputs, step: int) -> Data:
        return {name: value for name, value in inputs.data(draw, step).items() if name in taken}

    for inputs, order in _inputs(spec, spec.grid[1]):
        plain = order == "in order" and inputs.rows > 1 and inputs.name == "mixed"
        for step in SHOWN:
            yield Case(
                name=f"{inputs.name} {step} of {STEPS} {inputs.rows} {order}",
                data=partial(data, inputs=inputs, step=step),
                expected=partial(advanced, inputs),
                bytes_moved=inputs.rows * (vocab + spec.grid[0] * 32) * 4,
                flops=inputs.rows * vocab * 16,
                grid=(spec.grid[0], inputs.rows, 1),
                rows=dict.fromkeys(names, 0) if plain else {},
                kept=(1, 3, 4) if plain else (),
                others=0.0,
            )


def _draw(spec: KernelSpec) -> Iterator[Case]:
    vocab = arrays(spec)["logits"].shape[1]
    length, advance = int(constant(spec, "LENGTH")), int(constant(spec, "ADVANCE"))
    names = ("logits", "best", "where", "search", "goal", "above", "tokens", "chosen")

    def data(draw: Draw, inputs: Inputs) -> Data:
        return {**state(draw, length), **inputs.data(draw, STEPS)}

    def expected(given: Data, inputs: Inputs) -> dict[str, Expected]:
        tokens, search = [], given["search"].clone()
        for index in range(inputs.rows):
            row, slot = inputs.row(given, index), given["slots"][index]
            uniform = min(float(given["uniform"][slot]), DRAWS[LAST])
            tokens.append(sample(row.logits, row.temperature, row.top_k, row.top_p, uniform))
            search[index, 0] = 0
        fed = fed_back(given, tokens, length, advance, search.device)
        return fed | {"search": Expected(value=search)}

    for inputs, order in _inputs(spec, spec.grid[0]):
        plain = order == "in order" and inputs.rows > 1 and inputs.name == "mixed"
        yield Case(
            name=f"{inputs.name} {inputs.rows} {order}",
            data=partial(data, inputs=inputs),
            expected=partial(expected, inputs=inputs),
            bytes_moved=inputs.rows * vocab * 4,
            flops=inputs.rows * vocab * 4,
            grid=(inputs.rows, 1, 1),
            rows=dict.fromkeys(names, 0) if plain else {},
            kept=(1, 2, 4) if plain else (),
            others=0.0,
        )


def _inputs(spec: KernelSpec, most: int) -> Iterator[tuple[Inputs, str]]:
    """All inputs for the most rows in order; the first of them for one row and other orders too."""
    for rows in sorted({1, most}):
        for order, slots in row_slots(spec, rows):
            few = (rows, order) != (most, "in order") and most > 1
            for name in ("mixed",) if few else INPUTS:
                yield Inputs(spec, name, slots, rows), order
