"""The shapes vector add is proved on, how exact it must be, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32_BYTES = 4
HALF_ULP = 2.0**-24  # relative error of one correctly rounded float32 operation
ONE_ROUNDING = (
    "IEEE 754 addition rounds once: against the sum in float64 it loses at most half a unit in the last place"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One shape: `elements` float32 values in tiles of `tile`.

    `sass` lists instructions the machine code must hold; `access_bytes` is what each thread must move at
    least with one load or store on global memory.
    """

    name: str
    elements: int
    tile: int
    relative_tolerance: float
    tolerance_reason: str
    sass: tuple[str, ...]
    access_bytes: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tile blocks in x, y, z; the last one may be partly masked."""
        return (-(-self.elements // self.tile), 1, 1)

    @property
    def bytes_moved(self) -> int:
        """Bytes through device memory: read a, read b, write out."""
        return 3 * self.elements * FLOAT32_BYTES

    @property
    def flops(self) -> int:
        """One addition for each element."""
        return self.elements


CASES = (
    Case(
        name="whole",
        elements=2**20,
        tile=256,
        relative_tolerance=HALF_ULP,
        tolerance_reason=ONE_ROUNDING,
        sass=("FADD",),
        access_bytes=8,  # 128 threads share a tile of 256: two neighbours each
    ),
    Case(
        name="tail",
        elements=2**20 - 3,
        tile=256,
        relative_tolerance=HALF_ULP,
        tolerance_reason=ONE_ROUNDING,
        sass=("FADD",),
        access_bytes=4,  # an odd length leaves no whole pair at the end
    ),
)
