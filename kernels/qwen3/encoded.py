"""The kernels of encoded weights: decode steps of one row and of several, and what widens a matrix.

The programs are those of several bf16 rows, also for one: each kernel leaves its row already multiplied by
the next norm's weight, and the sums of squares beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

from kernels.encodings import FORMATS, FOUR_BIT, tile_words
from kernels.qwen3.pieces import embedding_rows, kernel_spec, squares_of
from kernels.qwen3.sizes import HEAD_DIM, ROWS, Sizes, power_of_two
from kernels.spec import Array, KernelSpec, bf16, e4m3, f32, u32
from kernels.tiles import Tile, Tiles

WIDEN_ROWS = 16


def encoded_products(s: Sizes, tiles: Tiles) -> Iterator[KernelSpec]:
    """Embedding, products and widening of a geometry whose weights are encoded."""
    for path, rows in (("one", 1), ("rows", ROWS)):
        weights = _Weights(s, tiles, rows)
        width = weights.square_width()
        yield embedding_rows(f"embedding.{path}", bf16("table", s.vocab, s.hidden), rows, rows, width)
        if rows > 1:
            table = f32("table", max(s.prompt_rows), s.hidden)
            yield embedding_rows("last", table, ROWS, ROWS, width)
        yield weights.scaled("qkv", "rmsnorm_qkv", s.heads * HEAD_DIM)
        yield weights.scaled("head", "rmsnorm_head_argmax", s.vocab)
        yield weights.gate_up()
        yield weights.residual("output", "output_residual", s.width)
        yield weights.residual("down", "down_residual", s.intermediate)
    yield from _widen(s)


class _Weights:
    """The products of `rows` rows, 1 or 8."""

    def __init__(self, sizes: Sizes, tiles: Tiles, rows: int) -> None:
        self._s, self._tiles, self._rows = sizes, tiles, rows
        self._four_bit = sizes.encoding in FOUR_BIT
        self._path, self._suffix = ("one", "") if rows == 1 else ("rows", "_rows")

    def scaled(self, name: str, operation: str, rows: int) -> KernelSpec:
        h = self._s.hidden
        tile = self._tile(name, rows, h)
        return kernel_spec(
            f"{name}.{self._path}",
            operation,
            f"rmsnorm_qkv.kernel:scaled_linear_encoded{self._suffix}",
            (
                self._x("z", h, tile),
                *self._squares(),
                *self._matrix(rows, h, tile),
                f32("out", self._rows, rows),
            ),
            self._normed() | self._constants(h, tile),
            (rows // tile.rows,),
            tile,
        )

    def gate_up(self) -> KernelSpec:
        h, i = self._s.hidden, self._s.intermediate
        tile = self._tile("gate_up", i, h)
        return kernel_spec(
            f"gate_up.{self._path}",
            "rmsnorm_gate_up_silu",
            f"rmsnorm_gate_up_silu.kernel:gate_up_silu_encoded{self._suffix}",
            (
                self._x("z", h, tile),
                *self._squares(),
                *self._matrix(2 * i, h, tile),
                bf16("out", self._rows, i),
            ),
            self._normed() | self._constants(h, tile) | {"HALF": i // tile.rows},
            (i // tile.rows,),
            tile,
        )

    def residual(self, name: str, operation: str, width: int) -> KernelSpec:
        h, rows = self._s.hidden, self._rows
        tile = self._tile(name, h, width)
        t = {"T": rows} if rows > 1 else {}
        constants = self._constants(width, tile)
        if rows == 1:
            constants = {"FORMAT": constants.pop("FORMAT"), "BANDS": tile.bands, **constants}
        return kernel_spec(
            f"{name}.{self._path}",
            operation,
            f"output_residual.kernel:linear_residual_encoded{self._suffix}",
            (
                self._x("x", width, tile),
                *self._matrix(h, width, tile),
                f32("residual", rows, h),
                bf16("norm", h),
                bf16("z", rows, h),
                *self._squares(),
            ),
            t | constants,
            (h // (tile.rows * tile.bands),),
            tile,
        )

    def square_width(self) -> int:
        """Columns whose squares one block sums: the rows of an output tile, and of a down tile."""
        s = self._s
        found = {self._tile("output", s.hidden, s.width), self._tile("down", s.hidden, s.intermediate)}
        widths = {tile.rows * tile.bands for tile in found}
        if len(widths) != 1:
            raise ValueError(
                f"{self._tiles.target}: {s.encoding}.{self._path}: output and down must have blocks of equal "
                f"rows, got {widths}"
            )
        return widths.pop()

    def _tile(self, name: str, rows: int, width: int) -> Tile:
        words = width // (8 if self._four_bit else 4)
        if self._rows > 1:
            return self._tiles.encoded_rows(self._s.encoding, name, rows, words)
        codes = words if self._four_bit else width
        return self._tiles.encoded(self._s.encoding, name, rows, codes)

    def _squares(self) -> tuple[Array, ...]:
        return (squares_of(self._s.hidden, self._rows, self.square_width()),)

    def _normed(self) -> dict[str, int | float]:
        t = {"T": self._rows} if self._rows > 1 else {}
        parts = power_of_two(self._s.hidden // self.square_width())
        return {"EPS": self._s.eps, "HIDDEN": self._s.hidden, **t, "PARTS": parts}

    def _constants(self, width: int, tile: Tile) -> dict[str, int | float]:
        count = self._count(width, tile)
        stack = {"STACK": tile.stack} if self._rows > 1 else {}
        return {
            "FORMAT": FORMATS[self._s.encoding],
            "ROWS": tile.rows,
            **stack,
            "WIDTH": tile.width,
            "TILES": count,
            "AHEAD": min(tile.ahead, count),
        }

    def _count(self, width: int, tile: Tile) -> int:
        """Tiles along a row."""
        words = width // (8 if self._four_bit else 4)
        codes = words if self._rows > 1 or self._four_bit else width
        whole = tile.width * max(tile.stack, 1)
        if self._four_bit and whole != tile_words(width):
            raise ValueError(f"a tile of {whole} words; the encoding's own has {tile_words(width)}")
        if codes % whole:
            raise ValueError(f"{whole} codes a tile do not divide {codes}")
        return codes // whole

    def _x(self, name: str, width: int, tile: Tile) -> Array:
        """The activations as the path reads them."""
        count = self._count(width, tile)
        if self._rows > 1:
            planes, columns = (4, 2 * tile.width) if self._four_bit else (1, 4 * tile.width)
            return bf16(name, self._rows, count, planes, tile.stack, columns)
        if self._four_bit:
            return bf16(name, tile.rows, count, 4, 2 * tile.width, repeated=True)
        return bf16(name, tile.rows, width, repeated=True)

    def _matrix(self, rows: int, width: int, tile: Tile) -> tuple[Array, ...]:
        """Codes, scale and table as the path reads them; FP8 has no table and binds its scale again."""
        count, stack = self._count(width, tile), tile.stack
        if self._rows > 1:
            codes = u32("codes", rows, count, stack, tile.width)
        elif self._four_bit:
            codes = u32("codes", rows, width // 8)
        else:
            codes = e4m3("codes", rows, width)
        match self._s.encoding:
            case "int4-codebook":
                table = bf16("table", rows, 1)
            case "nvfp4":
                parts = (stack,) if self._rows > 1 else ()
                table = e4m3("table", rows, count, 4, *parts, tile.width // 8)
            case _:
                table = f32("table", 1, rows)
        return codes, f32("scale", 1, rows), table


def _widen(s: Sizes) -> Iterator[KernelSpec]:
    shapes = {
        "qkv": (s.heads * HEAD_DIM, s.hidden),
        "output": (s.hidden, s.width),
        "gate_up": (2 * s.intermediate, s.hidden),
        "down": (s.hidden, s.intermediate),
    }
    for name, (rows, width) in shapes.items():
        if s.encoding in FOUR_BIT:
            words = tile_words(width)
            count = width // (8 * words)
            codes, out = u32("codes", rows, width // 8), bf16("out", rows, count, 4, 2 * words)
        else:
            words, count = 256, width // 256
            codes, out = e4m3("codes", rows, width), bf16("out", rows, width)
        match s.encoding:
            case "int4-codebook":
                table = bf16("table", rows, 1)
            case "nvfp4":
                table = e4m3("table", rows, count, 4, words // 8)
            case _:
                table = f32("table", 1, rows)
        yield kernel_spec(
            f"widen.{name}",
            "widen",
            "widen.kernel:widen",
            (codes, f32("scale", 1, rows), table, out),
            {"FORMAT": FORMATS[s.encoding], "ROWS": WIDEN_ROWS, "WIDTH": words},
            (rows // WIDEN_ROWS, count),
        )
