"""The stored bytes of a pack's tensors: an origin's BF16 numbers as they are, or encoded on several cores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from lean.contracts import Encoding
from lean.leanpack.encode import Encoded, encode
from lean.leanpack.layout import PlannedTensor
from lean.leanpack.origin import Origin

BLOCK = 1 << 18  # numbers that one thread encodes at a time: what they need fits a core's cache
AHEAD = 3  # blocks that wait or are worked on, to each thread


class EncodedContents:
    """Codes are streamed; scales and tables, a 16th of them or less, are held until they are asked for."""

    def __init__(self, origin: Origin, threads: int | None = None) -> None:
        self._origin = origin
        self._threads = threads or len(os.sched_getaffinity(0))
        self._held: dict[tuple[str, str | None], list[bytes]] = {}

    def contents(self, tensor: PlannedTensor) -> Iterator[bytes]:
        """The tensor's bytes in order, some MiB at a time; a matrix's codes before its scale and table."""
        matrix = tensor.matrix
        if matrix is None:
            yield from self._origin.contents(tensor)
        elif tensor.part != "codes":
            yield from self._held.pop((matrix.name, tensor.part))
        else:
            for block in self._encoded(tensor.encoding, matrix):
                for part, array in block.parts.items():
                    if part == "codes":
                        yield array.tobytes()
                    else:
                        self._held.setdefault((matrix.name, part), []).append(array.tobytes())

    def _encoded(self, encoding: Encoding, matrix: PlannedTensor) -> Iterator[Encoded]:
        working: deque[Future[Encoded]] = deque()
        with ThreadPoolExecutor(self._threads) as threads:
            for rows in row_blocks(self._origin.contents(matrix), matrix.shape[1]):
                working.append(threads.submit(encode, encoding, rows))
                if len(working) > AHEAD * self._threads:
                    yield working.popleft().result()
            for block in working:
                yield block.result()


def row_blocks(chunks: Iterator[bytes], width: int) -> Iterator[NDArray[np.uint16]]:
    """Chunks of any size as blocks of whole rows [R, width], each of about `BLOCK` numbers."""
    size = 2 * width * max(1, BLOCK // width)
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        whole = len(waiting) // size * size
        for start in range(0, whole, size):
            yield np.frombuffer(waiting[start : start + size], "<u2").reshape(-1, width)
        del waiting[:whole]
    if waiting:
        yield np.frombuffer(waiting, "<u2").reshape(-1, width)
