"""The launcher without a GPU: its clear refusals, and its ownership on a driver made of host memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="cuda-bindings, the driver's Python side, is not installed")

from cuda.bindings import driver as real

from kernels import driver

OK = real.CUresult.CUDA_SUCCESS


class HostMemoryDriver:
    """Answers like the CUDA driver of a machine with one GPU, whose memory is host memory.

    `calls` keeps the names in order. `answers` replaces the result of a call by name.
    """

    CUresult = real.CUresult
    CUdevice_attribute = real.CUdevice_attribute
    CUstream_flags = real.CUstream_flags
    CUlaunchConfig = SimpleNamespace

    def __init__(self, **answers: Any) -> None:
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.launched: list[Any] = []
        self.answers = answers

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if name in self.answers:
                return self.answers[name]
            return getattr(self, f"_{name}", lambda *_: (OK, 1))(*arguments)

        call.__name__ = name
        return call

    def _cuDriverGetVersion(self) -> Any:
        return OK, 13000

    def _cuGetErrorName(self, status: Any) -> Any:
        return OK, status.name.encode()

    def _cuGetErrorString(self, status: Any) -> Any:
        return OK, b"as the driver describes it"

    def _cuDeviceGetName(self, length: int, handle: Any) -> Any:
        return OK, b"Host Memory\0\0\0"

    def _cuDeviceGetAttribute(self, attribute: Any, handle: Any) -> Any:
        return OK, {"MAJOR": 12, "MINOR": 1}.get(attribute.name.rsplit("_", 1)[-1], 48)

    def _cuMemAlloc(self, size: int) -> Any:
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def _cuMemFree(self, pointer: int) -> Any:
        del self.memory[pointer]
        return (OK,)

    def _cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: Any) -> Any:
        ctypes.memmove(to, source, size)
        return (OK,)

    def _cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: Any) -> Any:
        ctypes.memmove(to, source, size)
        return (OK,)

    def _cuLaunchKernelEx(self, config: Any, kernel: Any, arguments: Any, extra: int) -> Any:
        self.launched.append((config, kernel, arguments, extra))
        return (OK,)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., HostMemoryDriver]:
    def install(**answers: Any) -> HostMemoryDriver:
        fake = HostMemoryDriver(**answers)
        monkeypatch.setattr(driver, "cuda", fake)
        return fake

    return install


def test_a_missing_driver_library_is_said_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise RuntimeError("libcuda.so.1 not found")

    monkeypatch.setattr(driver, "cuda", SimpleNamespace(cuDriverGetVersion=absent, CUresult=real.CUresult))
    with pytest.raises(
        driver.NoDriver, match=r"libcuda cannot be loaded \(libcuda.so.1 not found\); install .*r580"
    ):
        driver.open_device()


def test_the_real_bindings_without_a_driver_give_the_same_error() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(driver.NoDriver, match="install NVIDIA driver r580 or later"):
            driver.open_device()
    else:
        pytest.skip("this machine has an NVIDIA driver; the error needs one without")


def test_a_driver_older_than_r580_is_refused_before_it_is_initialised(install: Any) -> None:
    fake = install(cuDriverGetVersion=(OK, 12080))
    with pytest.raises(driver.DriverTooOld, match=r"offers CUDA 12\.8; 13\.0 is needed: install driver r580"):
        driver.open_device()
    assert fake.calls == ["cuDriverGetVersion"]


@pytest.mark.parametrize(
    "answers", [{"cuInit": (real.CUresult.CUDA_ERROR_NO_DEVICE,)}, {"cuDeviceGetCount": (OK, 0)}]
)
def test_a_driver_that_sees_no_gpu_says_so(install: Any, answers: dict[str, Any]) -> None:
    install(**answers)
    with pytest.raises(driver.NoGpu, match=r"\(CUDA 13\.0\) sees no GPU; compare with `nvidia-smi -L`"):
        driver.open_device()


def test_a_gpu_number_that_is_not_there_says_how_many_are(install: Any) -> None:
    install()
    with pytest.raises(driver.NoGpu, match="sees 1 GPUs and not number 3"):
        driver.open_device(3)


def test_any_other_refusal_carries_the_call_and_the_driver_s_words(install: Any) -> None:
    install(cuInit=(real.CUresult.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,))
    with pytest.raises(
        driver.CudaError, match="cuInit failed with CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: as the"
    ) as e:
        driver.open_device()
    assert (e.value.call, e.value.name) == ("cuInit", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH")


def test_the_facts_name_the_architecture_as_compilers_do(install: Any) -> None:
    install()
    with driver.open_device() as device:
        assert (device.facts.name, device.facts.sm, device.facts.cuda) == ("Host Memory", "sm_121", "13.0")


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (0,), (4, 0)])
def test_what_is_uploaded_comes_back_whatever_its_shape_and_order(
    install: Any, shape: tuple[int, ...]
) -> None:
    install()
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    with driver.open_device() as device:
        np.testing.assert_array_equal(device.upload(values).download(), values)
        np.testing.assert_array_equal(device.upload(values.T).download(), values.T)


def test_a_launch_passes_pointer_shape_and_strides_of_each_array_in_one_thread_blocks(install: Any) -> None:
    fake = install()
    with driver.open_device() as device:
        matrix = device.upload(np.zeros((6, 4), np.float32))
        vector = device.upload(np.zeros(9, np.uint16)).first(7)
        device.launch(device.load(b"cubin").kernel("add"), grid=(3, 2, 1), arguments=(matrix, vector))
        ((config, _, (values, types), extra),) = fake.launched
        assert values == (matrix.pointer, 6, 4, 4, 1, vector.pointer, 7, 1)
    assert types == (ctypes.c_void_p, *[ctypes.c_int32] * 4, ctypes.c_void_p, *[ctypes.c_int32] * 2)
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (3, 2, 1)
    assert (config.blockDimX, config.blockDimY, config.blockDimZ) == (1, 1, 1)
    assert extra == 0


def test_everything_is_given_back_in_reverse_order(install: Any) -> None:
    fake = install()
    with driver.open_device() as device:
        device.upload(np.zeros(4, np.float32))
        device.load(b"cubin")
        before = len(fake.calls)
    assert fake.calls[before:] == [
        "cuModuleUnload",
        "cuMemFree",
        "cuStreamDestroy",
        "cuDevicePrimaryCtxRelease",
    ]
    assert fake.memory == {}


def test_a_context_is_given_back_when_its_stream_cannot_be_made(install: Any) -> None:
    fake = install(cuStreamCreate=(real.CUresult.CUDA_ERROR_OUT_OF_MEMORY, None))
    with pytest.raises(driver.CudaError, match="cuStreamCreate failed with CUDA_ERROR_OUT_OF_MEMORY"):
        driver.open_device()
    assert fake.calls[-1] == "cuDevicePrimaryCtxRelease"


def test_a_fault_is_reported_as_itself_although_giving_back_fails_after_it(install: Any) -> None:
    fault = (real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,)
    fake = install()
    with pytest.raises(driver.CudaError, match="cuStreamSynchronize failed with CUDA_ERROR_ILLEGAL_ADDRESS"):  # noqa: SIM117
        with driver.open_device() as device:
            device.upload(np.zeros(4, np.float32))
            fake.answers = {"cuStreamSynchronize": fault, "cuMemFree": fault, "cuStreamDestroy": fault}
            device.synchronise()
    assert fake.calls[-1] == "cuDevicePrimaryCtxRelease"


def test_a_failure_to_give_back_is_an_error_when_nothing_else_went_wrong(install: Any) -> None:
    fake = install()
    with pytest.raises(driver.CudaError, match="cuMemFree failed with CUDA_ERROR_INVALID_VALUE"):  # noqa: SIM117
        with driver.open_device() as device:
            device.upload(np.zeros(4, np.float32))
            fake.answers = {"cuMemFree": (real.CUresult.CUDA_ERROR_INVALID_VALUE,)}


def test_closing_after_an_error_keeps_quiet_and_closing_after_none_does_not(install: Any) -> None:
    refused = {"cuMemFree": (real.CUresult.CUDA_ERROR_INVALID_VALUE,)}
    for after in (None, RuntimeError("the news")):
        fake = install()
        device = driver.open_device()
        device.upload(np.zeros(4, np.float32))
        fake.answers = refused
        if after is None:
            with pytest.raises(driver.CudaError, match="cuMemFree failed"):
                device.close()
        else:
            device.close(after=after)
        assert fake.calls[-1] == "cuDevicePrimaryCtxRelease"


def test_what_is_made_for_a_while_is_given_back_then_and_the_rest_at_the_end(install: Any) -> None:
    fake = install()
    with driver.open_device() as device:
        kept = device.upload(np.zeros(4, np.float32))
        with device.temporary():
            device.upload(np.zeros(8, np.float32))
            device.new_stream()
        assert fake.calls[-2:] == ["cuStreamDestroy", "cuMemFree"]
        assert list(fake.memory) == [kept.pointer]
        with pytest.raises(ValueError, match="the news"), device.temporary():
            device.upload(np.zeros(8, np.float32))
            fake.answers = {"cuMemFree": (real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,)}
            raise ValueError("the news")
        fake.answers = {}
    assert fake.calls[-3:] == ["cuMemFree", "cuStreamDestroy", "cuDevicePrimaryCtxRelease"]


def test_shapes_beyond_int32_and_views_beyond_the_end_are_refused(install: Any) -> None:
    fake = install()
    with driver.open_device() as device:
        with pytest.raises(ValueError, match="int32"):
            device.empty((2**31,), np.uint8)
        with pytest.raises(ValueError, match="int32"):
            device.empty((2, 2**31), np.uint8)
        assert "cuMemAlloc" not in fake.calls
        with pytest.raises(ValueError, match="no first 5 elements"):
            device.upload(np.zeros(4, np.float32)).first(5)
        with pytest.raises(ValueError, match="no first 1 elements"):
            device.upload(np.zeros((4, 1), np.float32)).first(1)
