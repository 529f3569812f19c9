"""Vector add on a real GPU against its torch reference."""

from __future__ import annotations

import numpy as np
import pytest

for needed in ("torch", "cuda.tile", "cuda.bindings"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

import torch  # noqa: E402

from kernels import aot, driver  # noqa: E402
from kernels.vector_add.cases import CASES, Case  # noqa: E402
from kernels.vector_add.kernel import SYMBOL, signature, vector_add  # noqa: E402
from kernels.vector_add.reference import vector_add as reference  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> driver.Device:
    try:
        with driver.open_device() as found:
            yield found
    except (driver.NoDriver, driver.NoGpu) as error:
        pytest.skip(f"no GPU: {error}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_kernel_equals_its_reference_bit_for_bit(device: driver.Device, case: Case) -> None:
    tools, target = aot.find_tools(), device.facts.sm
    cubin = aot.compile_cubin(tools, aot.compile_bytecode(vector_add, signature(case), target), target)
    random = np.random.default_rng(11)
    a, b = (random.standard_normal(case.elements).astype(np.float32) for _ in range(2))
    out = device.upload(np.full(case.elements, np.nan, np.float32))
    arguments = (device.upload(a), device.upload(b), out)
    device.launch(device.load(cubin).kernel(SYMBOL), grid=case.grid, arguments=arguments)
    expected = reference(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_array_equal(out.download().view(np.uint32), expected.view(np.uint32))


def test_a_cubin_of_another_chip_is_refused_by_name(device: driver.Device) -> None:
    other = "sm_121" if device.facts.sm != "sm_121" else "sm_90"
    tools = aot.find_tools()
    cubin = aot.compile_cubin(tools, aot.compile_bytecode(vector_add, signature(CASES[0]), other), other)
    with pytest.raises(driver.CudaError, match="cuModuleLoadData failed with CUDA_ERROR_NO_BINARY_FOR_GPU"):
        device.load(cubin)
