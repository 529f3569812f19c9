"""The read kernel's specification. Standard library only."""

from __future__ import annotations

from kernels.spec import Array, KernelSpec

NAME = "read_bandwidth"
WIDTH = 512  # i32 a tile, 2 KiB: 16 bytes to each of 128 threads, the widest load there is
TILES = 16  # to a block, all of them on their way at once
BLOCK_BYTES = 4 * WIDTH * TILES


def read_spec(span_bytes: int) -> KernelSpec:
    """The kernel that reads `span_bytes` from one address on, rounded down to whole blocks of 32 KiB."""
    blocks = span_bytes // BLOCK_BYTES
    if blocks < 1:
        raise ValueError(f"span: {span_bytes} bytes; a block reads {BLOCK_BYTES}")
    return KernelSpec(
        name=NAME,
        operation="read_bandwidth",
        function="read_bandwidth.kernel:row_sums",
        arrays=(
            Array(name="words", dtype="i32", shape=(blocks, WIDTH * TILES)),
            Array(name="sums", dtype="i32", shape=(blocks, 1)),
        ),
        constants=(("WIDTH", WIDTH), ("TILES", TILES)),
        grid=(blocks, 1, 1),
    )
