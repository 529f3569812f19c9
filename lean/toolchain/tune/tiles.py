"""The tile choices that `tune` tries, as data: for each kind of path the fields of `kernels.tiles.Tile`.

A field's values are all combined; choices that do not divide the shape, or that the kernels refuse, drop out
by themselves. A path is one, rows, prompt<T>, or the first two behind an encoding's name and a dot.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Fields = Mapping[str, tuple[Any, ...]]
HINTS: tuple[dict[str, int], ...] = ({}, {"occupancy": 1}, {"occupancy": 2})


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Every value of `fields` with every other, and with each of `also`: fields that go together."""

    fields: Fields
    also: tuple[Mapping[str, int], ...] = ({},)

    def tiles(self) -> Iterator[dict[str, int]]:
        """All choices, those that read least at once first."""
        for values in itertools.product(*self.fields.values()):
            for more in self.also:
                yield dict(zip(self.fields, values, strict=True)) | dict(more)


STACKS = ({"rows": 16, "stack": 4}, {"rows": 32, "stack": 2}, {"rows": 64, "stack": 1})
ONE = Grid(fields={"rows": (1, 2, 4), "width": (256, 512, 1024), "ahead": (1, 2, 3, 4, 5, 10)})
ROWS = Grid(
    fields={"width": (64, 128, 256), "ahead": (1, 2)},
    also=tuple(stack | hint for stack in STACKS for hint in ({}, {"occupancy": 2}, {"occupancy": 3})),
)
PROMPT = Grid(
    fields={"t": (64, 128, 256), "rows": (64, 128), "width": (64, 128)}, also=(*HINTS, {"warps": 8})
)
PROMPT_ATTENTION = Grid(fields={"rows": (64,), "width": (128,), "t": (16, 32, 64)}, also=HINTS)
ENCODED_ONE = Grid(
    fields={"rows": (2, 4, 8, 16), "width": (64, 128, 256, 512), "ahead": (1, 2, 4)},
    also=({}, {"bands": 2}, {"occupancy": 5}),
)
ENCODED_ROWS = Grid(
    fields={"width": (16, 32, 64, 128), "ahead": (1, 2)},
    also=tuple(stack | hint for stack in STACKS for hint in ({}, {"occupancy": 2})),
)


def grid_of(path: str, kernel: str) -> Grid:
    """The choices for one kernel of a path."""
    if path.startswith("prompt"):
        return PROMPT_ATTENTION if kernel == "attention" else PROMPT
    encoded, _, last = path.rpartition(".")
    if last == "one":
        return ENCODED_ONE if encoded else ONE
    return ENCODED_ROWS if encoded else ROWS


def divides(path: str, kernel: str, shape: tuple[int, int], tile: Mapping[str, int]) -> bool:
    """Whether blocks of this tile cover the shape exactly."""
    if path.startswith("prompt"):
        rows = int(path.removeprefix("prompt"))
        if rows % tile["t"]:
            return False
        if kernel == "attention":
            return True
    return shape[0] % (tile["rows"] * tile.get("bands", 1)) == 0


def tie_of(path: str, kernel: str, tile: Mapping[str, int]) -> tuple[str, int] | None:
    """What this choice must have in common with others: the name of the tie, and the value.

    The blocks of output and of down sum the same columns' squares; all prompt programs have one number of
    rows an attention block. See `kernels.qwen3.specs`.
    """
    name = tie_name(path, kernel)
    if name is None:
        return None
    return name, tile["t"] if kernel == "attention" else tile["rows"] * tile.get("bands", 1)


def tie_name(path: str, kernel: str) -> str | None:
    """What ties a kernel to others, if anything."""
    if kernel == "attention":
        return "attention of prompts"
    return f"{path}: output and down" if kernel in ("output", "down") and path != "one" else None
