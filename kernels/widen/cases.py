"""What widening is proved on: every code, under scales of different rows."""

from __future__ import annotations

from kernels.case import EXACT, Case, Data, Draw, Expected, MachineCode, arrays, total_bytes
from kernels.encodings.case import matrix, weight
from kernels.spec import KernelSpec


def cases(spec: KernelSpec) -> tuple[Case, ...]:
    """One case; the values are bf16 ones, and times the scale they are rounded once."""
    shape = arrays(spec)["out"].shape

    def data(draw: Draw) -> Data:
        return weight(draw, spec)

    def expected(given: Data) -> dict[str, Expected]:
        value = (matrix(spec, given) * given["scale"].T).bfloat16().double()
        return {"out": Expected(value=value.view(shape), tolerance=EXACT)}

    return (Case(name="random", data=data, expected=expected, bytes_moved=total_bytes(spec), flops=0),)


def machine_code(spec: KernelSpec, target: str) -> MachineCode:
    """Wide loads of codes, wide stores of bf16."""
    return MachineCode(access_bytes=8)
