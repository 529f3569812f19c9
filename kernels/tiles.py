"""Tile choices: measured ones from `tuning/<sm>.json` where there are any for the shape, else rules."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TUNING = Path(__file__).parent / "tuning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One choice: `rows` of the weight and `width` along the reduction a tile, `ahead` tiles before the wait.

    `stack`: parts of the reduction that a tile holds one below the other, on the path of several rows. `t`:
    rows of activations a block, on the prompt path. `bands`: of rows a block, on the path of one row with
    encoded weights. `spills`: the kernel may spill registers; a pack is refused otherwise.
    """

    rows: int
    width: int
    ahead: int = 0
    stack: int = 0
    t: int = 0
    bands: int = 1
    occupancy: int | None = None
    warps: int | None = None
    spills: bool = False

    def constants(self, reduction: int) -> dict[str, int | float]:
        """The kernel's constants for this reduction length."""
        stack = max(self.stack, 1)
        if reduction % (stack * self.width):
            several = f" in {stack} parts" if stack > 1 else ""
            raise ValueError(f"width {self.width} does not divide {reduction}{several}")
        count = reduction // (stack * self.width)
        if self.t:
            return {"T": self.t, "ROWS": self.rows, "WIDTH": self.width, "TILES": count}
        cut = {"STACK": stack} if self.stack else {}
        ahead = min(self.ahead, count)
        return {"ROWS": self.rows, **cut, "WIDTH": self.width, "TILES": count, "AHEAD": ahead}


class Tiles:
    """The choices for one target."""

    def __init__(self, target: str, entries: dict[tuple[str, ...], Tile]) -> None:
        self.target = target
        self._entries = entries

    def vector(self, name: str, rows: int, reduction: int) -> Tile:
        """One row: small tiles, so that many blocks share the bandwidth."""
        found = self._entries.get(("one", name, str(rows), str(reduction)))
        width = _largest(reduction, (512, 256))
        return found or Tile(rows=_largest(rows, (4, 2, 1) if name == "head" else (1,)), width=width, ahead=2)

    def rows(self, name: str, rows: int, reduction: int) -> Tile:
        """Up to 8 rows: `rows` times `stack` are the 64 rows that the tensor core takes."""
        found = self._entries.get(("rows", name, str(rows), str(reduction)))
        return found or Tile(rows=64, stack=1, width=_largest(reduction, (128, 64)), ahead=1)

    def encoded(self, encoding: str, name: str, rows: int, words: int) -> Tile:
        """One row of activations, encoded weights: `words` codes a row, or 4-byte words of 4-bit ones."""
        found = self._entries.get((f"{encoding}.one", name, str(rows), str(words)))
        width = 256 if encoding == "fp8-e4m3" else min(words & -words, 128)
        return found or Tile(rows=4, width=width, ahead=2)

    def encoded_rows(self, encoding: str, name: str, rows: int, words: int) -> Tile:
        """Up to 8 rows, encoded weights: `words` of 4 bytes a row."""
        found = self._entries.get((f"{encoding}.rows", name, str(rows), str(words)))
        width = min(words & -words, 128) // 4
        return found or Tile(rows=16, stack=4, width=width, ahead=1, occupancy=2)

    def prompt(self, name: str, t: int, rows: int, reduction: int) -> Tile:
        """A prompt chunk of `t` rows. The sum over the reduction is in the same order whatever the tile."""
        found = self._entries.get((f"prompt{t}", name, str(rows), str(reduction)))
        return found or Tile(rows=64, width=64, t=64)

    def prompt_attention(self, t: int) -> Tile:
        """A prompt program of `t` rows: the tile's own `t` of them to an attention block.

        That one is the same for all programs of a target, or `kernel_specs` refuses them.
        """
        found = self._entries.get((f"prompt{t}", "attention", str(t), "128"))
        return found or Tile(rows=64, width=128, t=64)


def load_tiles(target: str) -> Tiles:
    """The choices for `target`, such as sm_90. Errors: `ValueError` naming the file and the entry."""
    path = TUNING / f"{target}.json"
    if not path.is_file():
        return Tiles(target, {})
    document: dict[str, Any] = json.loads(path.read_bytes())
    if document.get("target") != target:
        raise ValueError(f"{path}: target: expected {target}, got {document.get('target')}")
    entries = {}
    for entry in document["tiles"]:
        rows, reduction = entry["shape"]
        key = (str(entry["path"]), str(entry["kernel"]), str(rows), str(reduction))
        entries[key] = Tile(**entry["tile"])
    return Tiles(target, entries)


def _largest(size: int, choices: tuple[int, ...]) -> int:
    return next(choice for choice in choices if size % choice == 0)
