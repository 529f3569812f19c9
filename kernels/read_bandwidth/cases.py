"""What the read is proved on: every word of it counts, and the sum is exact."""

from __future__ import annotations

from collections.abc import Callable

from kernels.case import Case, Data, Draw, Expected, MachineCode, arrays, total_bytes
from kernels.read_bandwidth.reference import row_sums
from kernels.spec import KernelSpec


def cases(spec: KernelSpec) -> tuple[Case, ...]:
    """Random words, and the largest ones, whose sum wraps around with every addition."""
    words = arrays(spec)["words"]
    rows = words.shape[0]

    def random(draw: Draw) -> Data:
        return {"words": draw.integers(words, -(2**31), 2**31)}

    def largest(draw: Draw) -> Data:
        return {"words": draw.integers(words, 2**31 - 4, 2**31)}

    def expected(given: Data) -> dict[str, Expected]:
        return {"sums": Expected(value=row_sums(given["words"]).unsqueeze(1))}

    def case(name: str, data: Callable[[Draw], Data]) -> Case:
        return Case(
            name=name,
            data=data,
            expected=expected,
            bytes_moved=total_bytes(spec),
            flops=0,
            rows={"words": 0, "sums": 0},
            kept=tuple(sorted({0, rows // 2, rows - 1})),
        )

    return case("random", random), case("largest", largest)


def machine_code(spec: KernelSpec, target: str) -> MachineCode:
    """Plain loads of the widest kind; integer additions are all it does."""
    return MachineCode(opcodes=("IADD3",), access_bytes=16)
