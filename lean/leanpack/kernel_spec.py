"""A manifest's kernel record as the specification it was compiled from."""

from __future__ import annotations

from kernels.spec import Array, KernelSpec
from lean.leanpack.kernel_record import KernelRecord


def spec_of(record: KernelRecord) -> KernelSpec:
    """The specification a record was compiled from: what is needed to launch its cubin."""
    x, y, z = record.grid
    return KernelSpec(
        name=record.name,
        operation=record.operation,
        function=record.function,
        arrays=tuple(
            Array(name=a.name, dtype=a.dtype, shape=a.shape, repeated=a.repeated) for a in record.arrays
        ),
        constants=tuple((constant.name, constant.value) for constant in record.constants),
        grid=(x, y, z),
        occupancy=record.occupancy,
        warps=record.warps,
        spills=bool(record.spill_stores or record.spill_loads),
    )
