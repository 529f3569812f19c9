"""A cubin on the GPU through the CUDA driver alone: load, copy, launch, synchronise. No torch, no compiler.

Everything on the device is owned by one `Device`, which gives it back when its `with` block ends:

    with open_device() as device:
        a, out = device.upload(values), device.upload(numpy.full_like(values, numpy.nan))
        kernel = device.load(cubin).kernel("symbol")
        device.launch(kernel, grid=(4096, 1, 1), arguments=(a, out))
        result = out.download()

One thread uses a device. Work runs in order on one stream; `download` and `synchronise` wait for it.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from cuda.bindings import driver as cuda

MINIMUM_CUDA = 13000  # what cuDriverGetVersion answers from r580 on
_INT32_MAX = 2**31 - 1

Grid = tuple[int, int, int]


class DriverError(Exception):
    """Base of what the driver can refuse."""


class NoDriver(DriverError):
    """libcuda is not there: no NVIDIA driver is installed."""


class NoGpu(DriverError):
    """The driver is there and sees no GPU."""


class DriverTooOld(DriverError):
    """The driver is older than r580 and cannot load what this compiler builds."""


class CudaError(DriverError):
    """A driver call failed. `call` is its name and `name` the error's, such as CUDA_ERROR_ILLEGAL_ADDRESS."""

    def __init__(self, call: str, name: str, text: str) -> None:
        super().__init__(f"{call} failed with {name}: {text}")
        self.call = call
        self.name = name


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What the driver says of a GPU. `unified`: its memory is the host's own.

    `sm` is its architecture as compilers name it, `cuda` the driver's CUDA level.
    """

    ordinal: int
    name: str
    sm: str
    cuda: str
    memory_bytes: int
    multiprocessors: int
    unified: bool


class DeviceArray:
    """A contiguous array in device memory. As a kernel argument it is pointer, int32 shape, int32 strides."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: np.dtype[Any], pointer: int) -> None:
        self.shape = shape
        self.dtype = dtype
        self.pointer = pointer
        self._device = device

    @property
    def nbytes(self) -> int:
        """Bytes it occupies."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements from one index to the next in each dimension, the last one 1."""
        return tuple(int(np.prod(self.shape[i + 1 :], dtype=np.int64)) for i in range(len(self.shape)))

    def first(self, count: int) -> DeviceArray:
        """The first `count` elements of a vector [N], in the same memory."""
        if len(self.shape) != 1 or not 0 <= count <= self.shape[0]:
            raise ValueError(f"no first {count} elements in an array of shape {list(self.shape)}")
        return DeviceArray(self._device, (count,), self.dtype, self.pointer)

    def download(self) -> np.ndarray[Any, np.dtype[Any]]:
        """A copy in host memory, made after all work so far."""
        host = np.empty(self.shape, self.dtype)
        if self.nbytes:
            stream = self._device.stream
            _call(cuda.cuMemcpyDtoHAsync, host.ctypes.data, self.pointer, self.nbytes, stream)
        self._device.synchronise()
        return host


@dataclass(frozen=True, slots=True)
class Bound:
    """A pointer passed as an array of a given shape: what a kernel compiled for static shapes expects."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


Argument = DeviceArray | Bound


class Graph:
    """Recorded launches, started together. `handle` is set once the recording is over."""

    handle: Any = None

    def __init__(self, device: Device) -> None:
        self._device = device

    def launch(self) -> None:
        """Run it after all work so far, and return at once."""
        _call(cuda.cuGraphLaunch, self.handle, self._device.stream)


class Event:
    """A point in a stream."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def record(self, stream: Any) -> None:
        """Put the point behind all work so far of `stream`."""
        _call(cuda.cuEventRecord, self._handle, stream)

    def record_in_graph(self, stream: Any) -> None:
        """Make the point part of the graph that `stream` records, to be passed at each of its launches."""
        _call(cuda.cuEventRecordWithFlags, self._handle, stream, _EXTERNAL)

    def seconds_since(self, earlier: Event) -> float:
        """Device time between two points of `timed_event` that were passed, to about half a microsecond.

        Errors: `CudaError` when one of them was not passed yet.
        """
        return float(_call(cuda.cuEventElapsedTime, earlier._handle, self._handle)) / 1e3

    def wait(self) -> None:
        """Return once the work before the point is over. Errors: `CudaError` when some of it failed."""
        _call(cuda.cuEventSynchronize, self._handle)


class Module:
    """One loaded cubin."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def kernel(self, symbol: str) -> Any:
        """The handle of one kernel, for `Device.launch`. Errors: `CudaError` where there is none."""
        return _call(cuda.cuModuleGetFunction, self._handle, symbol.encode())


class Device:
    """One GPU: its primary context, one stream, and all memory and modules made through it."""

    def __init__(self, facts: DeviceFacts, handle: Any) -> None:
        self.facts = facts
        self._releases: list[tuple[Callable[..., Any], Any]] = []
        context = self._context = _call(cuda.cuDevicePrimaryCtxRetain, handle)
        self._releases.append((cuda.cuDevicePrimaryCtxRelease, handle))
        try:
            _call(cuda.cuCtxSetCurrent, context)
            self.stream = _call(cuda.cuStreamCreate, cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
        except CudaError as error:
            self.close(after=error)
            raise
        self._releases.append((cuda.cuStreamDestroy, self.stream))

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(after=error)

    def close(self, *, after: BaseException | None = None) -> None:
        """Give back everything that was made on the device.

        Errors: `CudaError` when the driver refuses, unless `after` names the error that led here: after a
        fault every release fails too, and the first error is the news.
        """
        self._give_back(0, after)

    @contextlib.contextmanager
    def temporary(self) -> Iterator[None]:
        """What is made in the `with` block is given back at its end. Errors: as those of `close`."""
        before = len(self._releases)
        try:
            yield
        except BaseException as error:
            self._give_back(before, error)
            raise
        self._give_back(before, None)

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        """Uninitialised device memory. Errors: `CudaError` when it does not fit."""
        array = DeviceArray(self, tuple(shape), np.dtype(dtype), 0)
        if any(not 0 <= size <= _INT32_MAX for size in array.shape + array.strides):
            raise ValueError(f"shape {list(array.shape)}: a kernel takes shapes and strides as int32")
        array.pointer = int(_call(cuda.cuMemAlloc, max(array.nbytes, 1)))
        self._releases.append((cuda.cuMemFree, array.pointer))
        return array

    def upload(self, host: np.ndarray[Any, np.dtype[Any]]) -> DeviceArray:
        """A copy of a host array in device memory."""
        source = np.ascontiguousarray(host)
        array = self.empty(source.shape, source.dtype)
        if array.nbytes:
            _call(cuda.cuMemcpyHtoDAsync, array.pointer, source.ctypes.data, array.nbytes, self.stream)
            self.synchronise()  # `source` may go once this returns
        return array

    def load(self, cubin: bytes) -> Module:
        """Load a cubin. Errors: `CudaError`, for one when it was built for another architecture."""
        handle = _call(cuda.cuModuleLoadData, cubin)
        self._releases.append((cuda.cuModuleUnload, handle))
        return Module(handle)

    def launch(self, kernel: Any, *, grid: Grid, arguments: Sequence[Argument], early: bool = False) -> None:
        """Start a tile kernel on `grid` tile blocks and return at once.

        The compiled kernel knows its own thread count, so the block is (1, 1, 1); compile-time constants are
        no arguments. `early` lets it start while the kernel before it still runs (programmatic dependent
        launch); the kernel itself must wait before it touches what that one writes. A fault shows at the
        next `download` or `synchronise`.
        """
        config = cuda.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX = config.blockDimY = config.blockDimZ = 1
        config.sharedMemBytes = 0
        config.hStream = self.stream
        if early:
            config.attrs, config.numAttrs = [_EARLY], 1
        _call(cuda.cuLaunchKernelEx, config, kernel, pack_arguments(arguments), 0)

    @contextlib.contextmanager
    def capture(self) -> Iterator[Graph]:
        """Record the launches of the `with` block as a graph instead of running them.

        Errors: `CudaError` when the work cannot be recorded.
        """
        graph = Graph(self)
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _call(cuda.cuStreamBeginCapture, self.stream, mode)
        try:
            yield graph
        finally:
            recorded = _call(cuda.cuStreamEndCapture, self.stream)
        try:
            graph.handle = _call(cuda.cuGraphInstantiate, recorded, 0)
        finally:
            _call(cuda.cuGraphDestroy, recorded)
        self._releases.append((cuda.cuGraphExecDestroy, graph.handle))

    def pinned(self, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """`count` bytes of host memory that copies run from and to without a stop in between."""
        address = int(_call(cuda.cuMemHostAlloc, count, 0))
        self._releases.append((cuda.cuMemFreeHost, address))
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (count,))

    def share(self, host: np.ndarray[Any, Any]) -> int:
        """The device's address of read-only host memory, such as a mapped file; nothing is copied.

        For chips whose memory is the host's own; elsewhere each access crosses the bus. The memory must
        stay mapped until the device is closed.
        """
        flags = cuda.CU_MEMHOSTREGISTER_DEVICEMAP | cuda.CU_MEMHOSTREGISTER_READ_ONLY
        address = host.ctypes.data
        _call(cuda.cuMemHostRegister, address, host.nbytes, flags)
        self._releases.append((cuda.cuMemHostUnregister, address))
        return int(_call(cuda.cuMemHostGetDevicePointer, address, 0))

    def copy_in(
        self, array: DeviceArray, host: np.ndarray[Any, Any], *, offset: int = 0, stream: Any = None
    ) -> None:
        """Copy a contiguous host array into `array`, `offset` bytes from its start, in order with other work.

        From memory that is not `pinned` the bytes are taken before this returns.
        """
        assert host.flags.c_contiguous and 0 <= offset <= array.nbytes - host.nbytes
        if host.nbytes:
            to = stream or self.stream
            _call(cuda.cuMemcpyHtoDAsync, array.pointer + offset, host.ctypes.data, host.nbytes, to)

    def copy_out(self, array: DeviceArray, host: np.ndarray[Any, Any]) -> None:
        """Copy the start of `array` into a `pinned` host array; it is there once a later `Event` is over."""
        assert host.flags.c_contiguous and host.nbytes <= array.nbytes
        _call(cuda.cuMemcpyDtoHAsync, host.ctypes.data, array.pointer, host.nbytes, self.stream)

    def event(self) -> Event:
        """A point that can be put into a stream."""
        return self._event(cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING)

    def timed_event(self) -> Event:
        """A point whose time can be asked for."""
        return self._event(cuda.CUevent_flags.CU_EVENT_DEFAULT)

    def _event(self, flag: Any) -> Event:
        handle = _call(cuda.cuEventCreate, flag)
        self._releases.append((cuda.cuEventDestroy, handle))
        return Event(handle)

    def new_stream(self) -> Any:
        """Another stream, for copies beside the work of `stream`."""
        handle = _call(cuda.cuStreamCreate, cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self._releases.append((cuda.cuStreamDestroy, handle))
        return handle

    def free_memory(self) -> int:
        """Bytes of device memory that are free now."""
        free, _ = _call_many(cuda.cuMemGetInfo)
        return int(free)

    def use_here(self) -> None:
        """Make the device current on this thread too."""
        _call(cuda.cuCtxSetCurrent, self._context)

    def synchronise(self) -> None:
        """Wait for all work so far. Errors: `CudaError` when some of it failed."""
        _call(cuda.cuStreamSynchronize, self.stream)

    def _give_back(self, keep: int, after: BaseException | None) -> None:
        """Release all but the oldest `keep`, the newest first; raise the first failure if it is the news."""
        failures = []
        while len(self._releases) > keep:
            release, handle = self._releases.pop()
            try:
                _call(release, handle)
            except CudaError as error:
                failures.append(error)
        if failures and after is None:
            raise failures[0]


def pack_arguments(arguments: Sequence[Argument]) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """Values and C types in the order of `cutile_python_v2`: for each array pointer, shape, strides."""
    values: list[int] = []
    types: list[Any] = []
    for array in arguments:
        sizes = (*array.shape, *array.strides)
        values += [array.pointer, *sizes]
        types += [ctypes.c_void_p, *[ctypes.c_int32] * len(sizes)]
    return tuple(values), tuple(types)


def open_device(ordinal: int = 0) -> Device:
    """One GPU; use it in a `with` block, which gives back everything made on it.

    Errors: `NoDriver`, `DriverTooOld`, `NoGpu`, each with its fix; `CudaError` for any other refusal.
    """
    return Device(*_find(ordinal))


def _find(ordinal: int) -> tuple[DeviceFacts, Any]:
    try:
        level = int(_call(cuda.cuDriverGetVersion))
    except RuntimeError as error:  # cuda-bindings' own, when the library itself cannot be loaded
        raise NoDriver(f"libcuda cannot be loaded ({error}); install NVIDIA driver r580 or later") from None
    shown = f"{level // 1000}.{level % 1000 // 10}"
    if level < MINIMUM_CUDA:
        raise DriverTooOld(
            f"the NVIDIA driver offers CUDA {shown}; 13.0 is needed: install driver r580 or later"
        )
    try:
        _call(cuda.cuInit, 0)
        count = int(_call(cuda.cuDeviceGetCount))
    except CudaError as error:
        if error.name != "CUDA_ERROR_NO_DEVICE":
            raise
        count = 0
    if ordinal >= count:
        seen = "no GPU" if count == 0 else f"{count} GPUs and not number {ordinal}"
        raise NoGpu(f"the NVIDIA driver (CUDA {shown}) sees {seen}; compare with `nvidia-smi -L`")
    handle = _call(cuda.cuDeviceGet, ordinal)
    return _facts(ordinal, handle, shown), handle


def _facts(ordinal: int, handle: Any, level: str) -> DeviceFacts:
    def attribute(name: str) -> int:
        full = getattr(cuda.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(_call(cuda.cuDeviceGetAttribute, full, handle))

    name = _call(cuda.cuDeviceGetName, 256, handle)
    return DeviceFacts(
        ordinal=ordinal,
        name=name.split(b"\0")[0].decode("utf-8", "replace"),
        sm=f"sm_{attribute('COMPUTE_CAPABILITY_MAJOR')}{attribute('COMPUTE_CAPABILITY_MINOR')}",
        cuda=level,
        memory_bytes=int(_call(cuda.cuDeviceTotalMem, handle)),
        multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
        unified=bool(attribute("INTEGRATED")),
    )


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    results = _call_many(function, *arguments)
    return results[0] if results else None


def _call_many(function: Callable[..., Any], *arguments: Any) -> Any:
    status, *results = function(*arguments)
    if status != cuda.CUresult.CUDA_SUCCESS:
        name, text = (_described(f, status) for f in (cuda.cuGetErrorName, cuda.cuGetErrorString))
        raise CudaError(function.__name__, name, text)
    return results


def _early_start() -> Any:
    attribute, value = cuda.CUlaunchAttribute(), cuda.CUlaunchAttributeValue()
    attribute.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    value.programmaticStreamSerializationAllowed = 1
    attribute.value = value
    return attribute


_EARLY = _early_start()
_EXTERNAL = int(cuda.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL)


def _described(describe: Callable[..., Any], status: Any) -> str:
    found, text = describe(status)
    return str(text.decode()) if found == cuda.CUresult.CUDA_SUCCESS else f"unknown error {int(status)}"
