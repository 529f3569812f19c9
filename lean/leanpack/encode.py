"""BF16 rows to codes, scales and tables, in the layout of `kernels.encodings`, which says what they mean.

A row's encoding depends on that row alone. It is finite for finite weights, and zeros stay as small as the
encoding can say: int4-codebook has no zero, so a row of nothing but zeros has the scale 0.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.encodings import BLOCK, PLANE_BITS, PLANES, Encoding, tile_words
from lean.leanpack.convert import bf16_values, round_bf16

E4M3_MOST = 448.0
E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
# Curves that a row may choose from, and where its codebook may end, as shares of its largest magnitude. 33
# curves by 46 ends have 0.985 times the mean squared error of these on the demo's weights, 0.989 on normal
# ones.
CURVES = (-0.95, -0.9, -0.8, -0.7, -0.6, -0.45, -0.3, -0.15, 0.0)
ENDS = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.52, 0.44, 0.36, 0.28, 0.2)
BINS = 256  # of a row's magnitudes, to judge those choices by
_LARGEST = 3.4e38  # of a decoded weight: FP32 ends at 3.403e38

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What stands for rows [R, K], in file types: e4m3 as uint8, bf16 as uint16 bit patterns."""

    codes: NDArray[Any]
    scale: Floats  # [R]
    table: NDArray[Any] | None = None

    @property
    def parts(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, in the order of `kernels.encodings.encoded`."""
        table = {} if self.table is None else {"table": self.table}
        return {"codes": self.codes, "scale": self.scale, **table}


def encode(encoding: Encoding, rows: NDArray[np.uint16]) -> Encoded:
    """Encode finite BF16 bit patterns [R, K], K a multiple of 256."""
    values = bf16_values(rows)
    match encoding:
        case "fp8-e4m3":
            return _fp8(values)
        case "int4-codebook":
            return _codebook(values)
        case "nvfp4":
            return _nvfp4(values)
        case _:
            raise ValueError(f"encoding: {encoding} has no codes")


def to_e4m3(values: Floats) -> Bytes:
    """FP32 to e4m3, to nearest, ties to even; beyond 448 it saturates. NaN must not occur.

    Source: "FP8 Formats for Deep Learning", 2022: bias 7, subnormals in steps of 2^-9, no infinities.
    """
    magnitude = np.minimum(np.abs(values), np.float32(E4M3_MOST))
    bits = magnitude.view(np.uint32)
    # Adding half of the last kept place, less one unless that place is odd, carries as nearest-even rounds.
    normal = ((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (127 - 7 << 3)
    subnormal = np.rint(magnitude * np.float32(2**9)).astype(np.uint32)
    code: Bytes = np.where(magnitude < 2**-6, subnormal, normal).astype(np.uint8)
    code |= np.signbit(values).view(np.uint8) << 7
    return code


def e4m3_values() -> Floats:
    """What the 127 finite codes without a sign stand for, and 0 in the place of NaN: [128]."""
    code = np.arange(128)
    exponent, fraction = code >> 3, code & 7
    values = np.where(exponent > 0, (8 + fraction) * 2.0 ** (exponent - 10), fraction * 2.0**-9)
    values[127] = 0.0
    return values.astype(np.float32)


def codebook(curve: float) -> Floats:
    """The eight magnitudes of an int4 codebook before scaling, smallest first, rounded as a kernel rounds."""
    u = (1 + np.arange(8) / 8).astype(np.float32)
    shaped = bf16_values(round_bf16(u * u + bf16_values(_curves())[CURVES.index(curve)]))
    return bf16_values(round_bf16(u * shaped))


def _curves() -> NDArray[np.uint16]:
    return round_bf16(np.array(CURVES, np.float32))


def to_words(encoding: Encoding, codes: Bytes) -> NDArray[np.uint32]:
    """Codes 0 to 15 [R, K], in the order of the columns, to words [R, K / 8]."""
    rows, width = codes.shape
    halves = np.zeros(codes.shape, "<u2")
    for place, bit in enumerate(PLANE_BITS[encoding]):
        halves |= (codes >> (3 - place) & 1).astype("<u2") << bit
    tile = tile_words(width)
    planes = halves.reshape(rows, -1, PLANES, 2 * tile).view("<u4")  # [R, tiles, planes, J]
    words = planes[:, :, 0].copy()
    for plane in range(1, PLANES):
        words |= planes[:, :, plane] >> 4 * plane | planes[:, :, plane] << 32 - 4 * plane
    return words.reshape(rows, -1)


def _fp8(values: Floats) -> Encoded:
    scale = _scale(np.abs(values).max(1), E4M3_MOST)
    return Encoded(codes=to_e4m3(values / scale[:, None]), scale=scale)


def _nvfp4(values: Floats) -> Encoded:
    """Each block's largest magnitude becomes 6, the row's largest factor 448.

    The published recipe has one scale a tensor; a scale a row costs the same here, and rows stay independent.
    """
    magnitude = np.abs(values).reshape(len(values), -1, BLOCK)
    peak = magnitude.max(2)  # [R, K / 16]
    scale = _scale(peak.max(1), E2M1[-1] * E4M3_MOST)
    table = to_e4m3(peak / E2M1[-1] / scale[:, None])
    unit = e4m3_values()[table] * scale[:, None]
    unit[unit == 0] = np.inf  # a block too small to say: all of it is 0
    codes = _nearest_e2m1((magnitude / unit[:, :, None]).reshape(values.shape))
    codes |= np.signbit(values).view(np.uint8) << 3
    return Encoded(codes=to_words("nvfp4", codes), scale=scale, table=table)


def _nearest_e2m1(magnitude: Floats) -> Bytes:
    """The nearest of `E2M1` by its index, ties to the even one, as the hardware's own conversion has it."""
    code = np.zeros(magnitude.shape, np.uint8)
    for index, middle in enumerate((E2M1[1:] + E2M1[:-1]) / 2):
        code += magnitude >= middle if index % 2 else magnitude > middle
    return code


def _scale(top: Floats, most: float) -> Floats:
    return np.where(top > 0, top / np.float32(most), np.float32(1))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """C curves and ends: where each codebook steps from one of its values to the next, and by how much."""

    books: Floats  # [curves, 8]
    edges: NDArray[np.intp]  # [C, 7]: the first bin behind each step
    least: NDArray[np.float64]  # [C]: the smallest value
    rise: NDArray[np.float64]  # [C, 7]: of values
    rise_squared: NDArray[np.float64]  # [C, 7]: of their squares


@functools.cache
def _candidates() -> _Candidates:
    books = np.stack([codebook(curve) for curve in CURVES])
    wide = books.astype(np.float64).repeat(len(ENDS), 0)  # [C, 8]
    steps = (wide[:, 1:] + wide[:, :-1]) / 2 * (np.tile(ENDS, len(CURVES)) / wide[:, -1])[:, None]
    middle = (np.arange(BINS) + 0.5) / BINS
    return _Candidates(
        books=books,
        edges=np.searchsorted(middle, steps, side="right"),
        least=wide[:, 0],
        rise=np.diff(wide, axis=1),
        rise_squared=np.diff(wide * wide, axis=1),
    )


def _codebook(values: Floats) -> Encoded:
    """Curve and scale of least squared error among the candidates, then the nearest of the 16 values.

    With values v chosen for weights w, the scale of least error is P / Q with P = Σ w v and Q = Σ v², and the
    error Σ w² - P² / Q. Sums go over a histogram of the row.
    """
    magnitude = np.abs(values)
    top = magnitude.max(1)
    tried = _candidates()
    product, square = _sums(_histogram(magnitude, np.where(top > 0, top, np.float32(1))), tried)
    best = (product * product / square).argmax(1)[:, None]
    ratio = np.take_along_axis(product, best, 1) / np.take_along_axis(square, best, 1)
    curve = best[:, 0] // len(ENDS)
    book = tried.books[curve]  # [R, 8]
    scale = np.minimum(top * ratio[:, 0], _LARGEST / book[:, -1]).astype(np.float32)
    codes = _nearest(magnitude, book * scale[:, None])
    codes |= np.signbit(values).view(np.uint8) << 3
    table = _curves()[curve]
    return Encoded(codes=to_words("int4-codebook", codes), scale=scale, table=table)


def _histogram(magnitude: Floats, top: Floats) -> NDArray[np.intp]:
    """How many magnitudes of each row fall into each of `BINS` equal bins up to the row's largest."""
    rows = len(magnitude)
    places = (magnitude / top[:, None] * np.float32(BINS)).astype(np.intp)
    np.minimum(places, BINS - 1, out=places)
    places += (np.arange(rows) * BINS)[:, None]
    return np.bincount(places.ravel(), minlength=rows * BINS).reshape(rows, BINS)


def _sums(counts: NDArray[np.intp], tried: _Candidates) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P in units of the row's largest magnitude, and Q, of every candidate: [R, C] each.

    All sums are exact, so their order does not matter: values have 8 bits, middles of bins 9.
    """
    middle = (np.arange(BINS) + 0.5) / BINS
    number, total = (_from_each_bin_on(of) for of in (counts.astype(np.float64), counts * middle))
    product = total[:, :1] * tried.least + (total[:, tried.edges] * tried.rise).sum(2)
    square = number[:, :1] * tried.least**2 + (number[:, tried.edges] * tried.rise_squared).sum(2)
    return product, square


def _from_each_bin_on(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of each bin and all behind it, and of none: [R, BINS + 1]."""
    behind = np.zeros((len(sums), BINS + 1))
    behind[:, :-1] = sums[:, ::-1].cumsum(1)[:, ::-1]
    return behind


def _nearest(magnitude: Floats, book: Floats) -> Bytes:
    """The nearest of each row's own values [R, 8], smallest first, by its index; ties to the smaller one."""
    exact = (book[:, 1:].astype(np.float64) + book[:, :-1]) / 2
    middle = exact.astype(np.float32)
    # Rounded down, so that an FP32 number lies above the one exactly when it lies above the other.
    middle = np.where(middle > exact, np.nextafter(middle, np.float32(0)), middle)
    code = np.zeros(magnitude.shape, np.uint8)
    for index in range(middle.shape[1]):
        code += magnitude > middle[:, index : index + 1]
    return code
