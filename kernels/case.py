"""What a kernel is proved on: cases with fresh inputs, what must come out, how exact, and what it costs.

Each `kernels/<op>/cases.py` has `cases(spec)`, the cases of one compiled kernel, whose shapes and constants
are those of its specification, and `machine_code(spec, target)`, what its SASS must hold. Expected values are
FP64, computed from the very bits that the kernel gets; tests/kernels/test_cases.py holds them to the
references.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor

from kernels.sass import SassFacts
from kernels.spec import Array, DType, KernelSpec

DTYPES: dict[DType, torch.dtype] = {
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "i32": torch.int32,
    "u32": torch.uint32,
    "e4m3": torch.float8_e4m3fn,
}
SHARED_LIMIT = {"sm_90": 227 * 1024, "sm_121": 99 * 1024}  # bytes a block may have (CUDA C guide, table 21)
TENSOR_CORE = {"sm_90": "HGMMA", "sm_121": "HMMA"}
BLOCK = 1 << 26  # elements of a weight widened to FP64 at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far an output may be off, row by row (a row is one index of its first dimension).

    `norm` bounds ‖got - want‖ / ‖want‖; `element` bounds each |got - want| / (|want| + rms(want)).
    """

    norm: float
    element: float
    reason: str


EXACT = Tolerance(
    norm=0.0, element=0.0, reason="copied, compared or rounded once to the nearest: bit for bit"
)
VECTOR_F32 = Tolerance(
    norm=2.0**-20,
    element=2.0**-17,
    reason="f32 sums: at most 38 in a row in a lane, then a tree of 10; each rounds to 2^-24 of a part",
)
TENSOR_F32 = Tolerance(
    norm=2.0**-15,
    element=2.0**-12,
    reason="the tensor core truncates its f32 sum every 16 products: up to 608 times 2^-24, all one way",
)
BF16 = Tolerance(
    norm=2.0**-8, element=2.0**-8, reason="rounded once to bf16's 8 bits: at most 2^-8 of each element"
)
BF16_WEIGHTS = Tolerance(
    norm=2.0**-7,
    element=2.0**-5,
    reason="query, probabilities and result are each rounded to bf16 (2^-8); the roundings add up as noise",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """One output: `value`, FP64 or integer in the array's shape, judged at `where`, or everywhere.

    The other elements keep their bits, or may hold `anything`.
    """

    value: Tensor
    tolerance: Tolerance = EXACT
    where: Tensor | None = None
    elsewhere: Literal["unchanged", "anything"] = "unchanged"


Data = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One launch. An array that `data` does not give is poisoned, and scratch if nothing is expected of it.

    `rows`: the axis along which an array holds rows (or slots) that know nothing of each other. With every
    row but one of `kept` changed, that one's results keep their bits. `others` is what floats are changed to;
    integers are moved on to the next of the others.
    """

    name: str
    data: Callable[[Draw], Data]
    expected: Callable[[Data], dict[str, Expected]]
    bytes_moved: int
    flops: int
    grid: tuple[int, int, int] | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    kept: tuple[int, ...] = ()
    others: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineCode:
    """Instructions that the SASS must hold, and the widest load or store it must have, in bytes a thread.

    `bulk`: tiles come by the tensor memory accelerator.
    """

    opcodes: tuple[str, ...] = ()
    access_bytes: int = 4
    bulk: bool = False


def code_problems(
    spec: KernelSpec, target: str, facts: SassFacts, shared_bytes: int, spills: tuple[int, int] = (0, 0)
) -> tuple[str, ...]:
    """What is wrong with a kernel's machine code; `spills`: stores and loads that its tuning admits."""
    wanted = machine_code_of(spec, target)
    widest = max((*facts.global_load_bytes, *facts.global_store_bytes), default=0)
    wrong = [f"no {opcode}" for opcode in wanted.opcodes if not facts.holds(opcode)]
    if widest < wanted.access_bytes:
        wrong.append(f"no access wider than {widest} bytes a thread; {wanted.access_bytes} are expected")
    if wanted.bulk and not facts.bulk_copies:
        wrong.append("no tile comes by the tensor memory accelerator")
    if shared_bytes > SHARED_LIMIT[target]:
        wrong.append(f"{shared_bytes} bytes of shared memory; a block has {SHARED_LIMIT[target]}")
    if (facts.spill_stores, facts.spill_loads) != spills:
        wrong.append(f"{facts.spill_stores} spill stores and {facts.spill_loads} loads; {spills} are known")
    return tuple(wrong)


class Draw:
    """Fresh inputs, the same for a seed on one kind of device."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, array: Array, scale: float = 1.0) -> Tensor:
        """Normal values of deviation `scale`."""
        return (self._randn(array.shape) * scale).to(DTYPES[array.dtype])

    def weight(self, array: Array, scale: float = 1.0) -> Tensor:
        """A matrix [N, K], or in parts, that keeps the size of what it is applied to, times `scale`."""
        return self.normal(array, scale / math.sqrt(math.prod(array.shape[1:])))

    def gain(self, width: int) -> Tensor:
        """A norm's weights, bf16 [width], around 1."""
        return (1.0 + 0.25 * self._randn((width,))).bfloat16()

    def stream(self, rows: int, width: int) -> Tensor:
        """Residual rows, f32 [rows, width], of different sizes, with one large feature as in models."""
        x = self._randn((rows, width))
        x *= torch.exp2(torch.arange(rows, device=self.device) % 5 - 2.0).unsqueeze(1)
        x[:, 7] *= 30.0
        return x

    def integers(self, array: Array, low: int, high: int) -> Tensor:
        """Values low .. high - 1."""
        return torch.randint(
            low, high, array.shape, generator=self._generator, device=self.device, dtype=torch.int32
        )

    def given(self, values: list[int] | list[float], dtype: DType = "i32") -> Tensor:
        """Just these."""
        return torch.tensor(values, dtype=DTYPES[dtype], device=self.device)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """f32 values in [0, 1)."""
        return torch.rand(shape, generator=self._generator, device=self.device)

    def _randn(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self.device)


def cases_of(spec: KernelSpec) -> tuple[Case, ...]:
    """The cases of one kernel, from the `cases.py` beside its source."""
    return cast("tuple[Case, ...]", _beside(spec).cases(spec))


def machine_code_of(spec: KernelSpec, target: str) -> MachineCode:
    """What the kernel's SASS must hold on `target`."""
    return cast(MachineCode, _beside(spec).machine_code(spec, target))


def _beside(spec: KernelSpec):  # type: ignore[no-untyped-def]  # a module
    return importlib.import_module(f"kernels.{spec.function.split('.')[0]}.cases")


def arrays(spec: KernelSpec) -> dict[str, Array]:
    """The kernel's arrays by name."""
    return {array.name: array for array in spec.arrays}


def kernel_function(spec: KernelSpec) -> str:
    """The name of the kernel's Python function."""
    return spec.function.split(":")[1]


def constant(spec: KernelSpec, name: str) -> float:
    """A constant of the kernel."""
    return dict(spec.constants)[name]


def total_bytes(spec: KernelSpec, *, twice: tuple[str, ...] = ()) -> int:
    """Every array once through device memory; those of `twice` read and written."""
    return sum(array.nbytes * (2 if array.name in twice else 1) for array in spec.arrays)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, K] · weight [N, K]ᵀ in FP64; K may be cut into parts."""
    wide, weight = x.double().flatten(1), weight.flatten(1)
    step = max(1, BLOCK // weight.shape[1])
    parts = [wide @ weight[i : i + step].double().T for i in range(0, weight.shape[0], step)]
    return torch.cat(parts, dim=1)


def inverse_rms(mean_square: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x²) + eps) in FP64."""
    return torch.rsqrt(mean_square.double() + eps)


def block_squares(stream: Tensor, parts: int) -> Tensor:
    """Sums of squares of `parts` blocks of columns: [T, H] -> [parts, T], in the type of `stream`."""
    return stream.view(stream.shape[0], parts, -1).square().sum(-1).T.contiguous()


def behind_stream(stream: Tensor, norm: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """What a producer leaves beside its stream f32 [T, H]: z bf16 [T, H] and squares f32 [parts, T]."""
    return (stream * norm.float()).bfloat16(), block_squares(stream, parts)
