"""A pack's weights on the device: each file as it lies, copied through pinned memory by several threads.

One thread fills a pinned buffer from the page cache while the copy engine empties its other one, so the
mapped file is read, the staging buffer written and the bus used at the same time. Where the chip's memory
is the host's own nothing is copied at all: the kernels read the mapped file.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.driver import Device, DeviceArray, Event
from lean.leanpack import Pack

THREADS = 4
PIECE = 16 << 20  # bytes


def place_weights(device: Device, pack: Pack) -> dict[str, int]:
    """The device address of every tensor and alias. Errors: `CudaError` when the device has no room."""
    names = dict.fromkeys(tensor.file for tensor in pack.manifest.tensors)
    if device.facts.unified:
        bases = {name: device.share(pack.weight_file(name)) for name in names}
    else:
        bases = _copy(device, {name: pack.weight_file(name) for name in names})
    places = {tensor.name: bases[tensor.file] + tensor.offset for tensor in pack.manifest.tensors}
    return places | {alias: places[name] for alias, name in pack.manifest.aliases.items()}


def _copy(device: Device, files: dict[str, NDArray[np.uint8]]) -> dict[str, int]:
    arrays = {name: device.empty(file.shape, np.uint8) for name, file in files.items()}
    pieces = [
        (file[start : start + PIECE], arrays[name], start)
        for name, file in files.items()
        for start in range(0, len(file), PIECE)
    ]
    with device.temporary():  # the pinned buffers are the host's memory, and nobody needs them afterwards
        lanes = [_Lane(device) for _ in range(min(THREADS, len(pieces)))]
        with ThreadPoolExecutor(len(lanes)) as threads:
            work = iter(pieces)  # one iterator for all lanes: whoever is free takes the next piece
            for done in [threads.submit(lane.run, work) for lane in lanes]:
                done.result()
    return {name: array.pointer for name, array in arrays.items()}


class _Lane:
    """One thread's stream, its two pinned buffers, and the event that says when each is free again."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stream: Any = device.new_stream()
        self._buffers = [device.pinned(PIECE) for _ in range(2)]
        self._events: list[Event] = [device.event() for _ in range(2)]

    def run(self, work: Iterator[tuple[NDArray[np.uint8], DeviceArray, int]]) -> None:
        self._device.use_here()
        for turn, (piece, array, start) in enumerate(work):
            buffer, free = self._buffers[turn % 2], self._events[turn % 2]
            if turn > 1:
                free.wait()
            ctypes.memmove(buffer.ctypes.data, piece.ctypes.data, piece.nbytes)  # lets other threads run
            self._device.copy_in(array, buffer[: piece.nbytes], offset=start, stream=self._stream)
            free.record(self._stream)
        for event in self._events:
            event.record(self._stream)
            event.wait()
