"""A pack's target brought to life: kernels loaded, buffers made, weights placed, programs recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kernels.driver import CudaError, Device, DeviceArray, Graph
from kernels.qwen3 import (
    BANNED,
    HEAD_DIM,
    SLOTS,
    Sizes,
    decode_program,
    predict_program,
    prompt_program,
    work_buffers,
)
from kernels.spec import Array, Launch
from lean.contracts import Contract
from lean.errors import PackError, PreflightError
from lean.kernel_sizes import sizes_of
from lean.leanpack import Pack
from lean.leanpack.kernel_spec import spec_of
from lean.leanserve.cuda.programs import LoadedKernel, Programs, load_kernel
from lean.leanserve.cuda.weights import place_weights
from lean.leanserve.plan import BUCKETS

Choose = Literal["greedy", "sampled"]
CHOICES: tuple[Choose, ...] = ("greedy", "sampled")
_DTYPES = {"bf16": np.uint16, "f32": np.float32, "i32": np.int32}
STAGING_BYTES = 1 << 20
_ZEROED = ("arrived", "drawn", "until", "tokens", "temperature", "top_k", "uniform", "search.0")


class Appliance:
    """Everything of one pack on one device. The caller closes the device."""

    def __init__(self, device: Device, pack: Pack, *, slots: int, split_k: int | None = None) -> None:
        contract = pack.manifest.contract
        self.device = device
        self.sizes: Sizes = sizes_of(contract)
        self.split_k = split_k
        self.pack = pack  # where the chip's memory is the host's own, the kernels read its mapping
        self._staging, self._staged = device.pinned(STAGING_BYTES), 0
        kernels = _load(device, pack)
        self._weights = weights = place_weights(device, pack)
        check_programs(pack, self.sizes, slots, kernels, weights, split_k)
        self.buffers: dict[str, DeviceArray] = {
            buffer.name: device.empty(buffer.shape, _DTYPES[buffer.dtype])
            for buffer in work_buffers(self.sizes, slots, split_k)
        }
        self._fill(contract)
        pointers = {name: buffer.pointer for name, buffer in self.buffers.items()} | weights
        self.programs = Programs(device, kernels, pointers)
        self._graphs: dict[tuple[Any, ...], Graph] = {}

    def decode(self, bucket: int, choose: Choose = "greedy") -> None:
        """Start one step of `bucket` rows."""
        self._graph(("decode", bucket, choose), lambda: self.decode_launches(bucket, choose)).launch()

    def decode_launches(self, bucket: int, choose: Choose = "greedy") -> tuple[Launch, ...]:
        """The launches of one step."""
        launches: tuple[Launch, ...] = decode_program(self.sizes, bucket, choose, self.split_k)
        return launches

    def prompt(self, rows: int) -> None:
        """Start the program for `rows` rows of prompts."""
        self._graph(("prompt", rows), lambda: prompt_program(self.sizes, rows)).launch()

    def predict(self, count: int, choose: Choose = "greedy") -> None:
        """Start the choice behind `count` prompts."""
        key = ("predict", count, choose)
        self._graph(key, lambda: predict_program(self.sizes, count, choose)).launch()

    def weight_files(self) -> list[tuple[int, int]]:
        """The device address and the bytes of each weight file, from its first tensor to its last."""
        spans: dict[str, tuple[int, int]] = {}
        for tensor in self.pack.manifest.tensors:
            first = self._weights[tensor.name]
            start, end = spans.get(tensor.file, (first, first))
            spans[tensor.file] = min(start, first), max(end, first + tensor.size)
        return [(start, end - start) for start, end in spans.values()]

    def write(self, name: str, values: Any, *, first: int = 0) -> None:
        """Set elements of a small buffer from index `first` on, in order with the other work."""
        buffer = self.buffers[name]
        host: NDArray[Any] = np.ascontiguousarray(np.asarray(values, dtype=buffer.dtype)).reshape(-1)
        for start in range(0, host.nbytes, STAGING_BYTES):
            piece = host.view(np.uint8)[start : start + STAGING_BYTES]
            self.device.copy_in(buffer, self._stage(piece), offset=first * buffer.dtype.itemsize + start)

    def _stage(self, piece: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes in pinned memory that stays as it is until the device has taken them."""
        if self._staged + piece.nbytes > STAGING_BYTES:
            self.device.synchronise()
            self._staged = 0
        staged: NDArray[np.uint8] = self._staging[self._staged : self._staged + piece.nbytes]
        staged[:] = piece
        self._staged += -(-piece.nbytes // 64) * 64
        return staged

    def _graph(self, key: tuple[Any, ...], program: Callable[[], Iterable[Launch]]) -> Graph:
        if key not in self._graphs:
            self._graphs[key] = self.programs.record(program())
        return self._graphs[key]

    def _fill(self, contract: Contract) -> None:
        for name in _ZEROED:
            self.write(name, np.zeros(self.buffers[name].shape))
        self.write("positions", np.full(SLOTS, -1))
        self.write("rows", np.arange(SLOTS))
        self.write("banned", np.full((SLOTS, BANNED), -1))
        self.write("top_p", np.ones(SLOTS))
        self.write("rotary", rotary_table(HEAD_DIM, contract.model.rope_theta, self.sizes.length))


def rotary_table(head_dim: int, theta: float, length: int) -> NDArray[np.float32]:
    """Cosines, then sines, of position · theta^(-2i/D) for i < D/2: [length, D]."""
    frequency = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angle = np.outer(np.arange(length), frequency)
    return np.concatenate((np.cos(angle), np.sin(angle)), axis=1).astype(np.float32)


def check_programs(
    pack: Pack,
    sizes: Sizes,
    slots: int,
    kernels: Mapping[str, LoadedKernel],
    weights: Mapping[str, int],
    split_k: int | None = None,
) -> None:
    """Raise `PackError` unless the pack's kernels are those that this release's programs launch."""
    buffers = {buffer.name: buffer for buffer in work_buffers(sizes, slots, split_k)}
    programs = [
        *(decode_program(sizes, bucket, choose, split_k) for bucket in BUCKETS for choose in CHOICES),
        *(prompt_program(sizes, rows) for rows in sizes.prompt_rows),
        *(predict_program(sizes, SLOTS, choose) for choose in CHOICES),
    ]
    for launch in (launch for program in programs for launch in program):
        problem = _problem(launch, kernels.get(launch.kernel), buffers, weights, slots)
        if problem:
            raise PackError(f"{pack.path}: kernel {launch.kernel} {problem}; pack it again with this release")


def _problem(
    launch: Launch,
    kernel: LoadedKernel | None,
    buffers: Mapping[str, Array],
    weights: Mapping[str, int],
    slots: int,
) -> str | None:
    """Why the kernel cannot be launched on these buffers, if so."""
    if kernel is None:
        return "is missing"
    if len(kernel.arrays) != len(launch.buffers):
        return f"takes {len(kernel.arrays)} arrays, not {len(launch.buffers)}"
    for array, name in zip(kernel.arrays, launch.buffers, strict=True):
        buffer = buffers.get(name)
        if buffer is None:
            if name not in weights:
                return f"wants {name}, which there is not"
            continue
        compiled = SLOTS if name.startswith(("keys.", "values.")) else slots  # the cache: for all slots
        if array.dtype != buffer.dtype or array.nbytes * slots > buffer.nbytes * compiled:
            return f"takes {name} as {array.dtype} {list(array.shape)}"
    return None


def _load(device: Device, pack: Pack) -> dict[str, LoadedKernel]:
    """The kernels of the device's own target. Errors: `PreflightError` when the pack has none for it."""
    found = {target.name: target for target in pack.manifest.targets if target.kernels}
    target = found.get(device.facts.sm)
    if target is None:
        have = ", ".join(sorted(found)) or "none"
        raise PreflightError(
            f"{pack.path}: no kernels for {device.facts.name} ({device.facts.sm}); the pack has: {have}; "
            f"pack again with --target {device.facts.sm}"
        )
    kernels = {}
    for record in target.kernels:
        cubin = (pack.path / record.cubin).read_bytes()
        try:
            kernels[record.name] = load_kernel(device, spec_of(record), cubin)
        except CudaError as error:
            raise PreflightError(f"{pack.path / record.cubin}: {error}; pack again") from None
    return kernels
