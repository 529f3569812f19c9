"""One case of one kernel, tried.

It starts from fresh inputs. Arrays that the kernel is to write, and its scratch, are poisoned, and all arrays
lie between guard bands. The case is run three times, twice with one poison and once with another: what it
writes must be the same bits each time, so no element was left unwritten or taken from scratch. Then every row
but one is changed, and that row's results must keep their bits.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from kernels.case import Case, Data, Draw, Expected
from kernels.spec import Array
from lean.errors import GateError
from lean.toolchain.arguments import SEED
from lean.toolchain.built import Kernel
from lean.toolchain.chip.judge import judge
from lean.toolchain.chip.machine import Machine
from lean.toolchain.chip.memory import Memory, bits

POISON, OTHER_POISON = 0xFF, 0x7F  # NaN, then 3.4e38, in bf16 and f32 alike


@dataclass(frozen=True, slots=True)
class Trial:
    """One case of one loaded kernel, to be launched as often as its checks need."""

    machine: Machine
    loaded: Any
    kernel: Kernel
    case: Case

    @property
    def name(self) -> str:
        """Geometry, kernel and case."""
        return f"{self.kernel.sizes} {self.kernel.spec.name} {self.case.name}"

    def data(self) -> Data:
        """Its inputs, seeded by its name."""
        seed = SEED ^ int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4])
        return self.case.data(Draw(seed, self.machine.device))

    def launch(self, data: Data, poison: int) -> Memory:
        """What one launch leaves. Errors: `GateError` when the device failed."""
        spec = self.kernel.spec
        memory = Memory(spec, data, poison, self.machine.device)
        try:
            self.machine.run(self.loaded, spec, self.case, memory.tensors())
        except GateError as error:
            raise GateError(f"{self.name}: {error}") from None
        return memory


def run_case(
    machine: Machine, loaded: Any, kernel: Kernel, case: Case, tolerances: dict[str, Any]
) -> dict[str, Any]:
    """All runs of one case; what is wrong is in `problems`. Errors: `GateError` when the device failed."""
    spec, start = kernel.spec, time.perf_counter()
    trial = Trial(machine, loaded, kernel, case)
    data = trial.data()
    expected = case.expected(data)
    function = spec.function.split(":")[1]
    for name, wanted in expected.items():
        tolerances.setdefault(f"{function} {name}", asdict(wanted.tolerance))
    first = trial.launch(data, POISON)
    judged = {name: judge(first.array(name), wanted) for name, wanted in expected.items()}
    problems = [
        *(problem for a in spec.arrays for problem in _touched(first, a, data, expected.get(a.name))),
        *(f"{name}: {problem}" for name, one in judged.items() for problem in one.problems),
        *_unsteady(trial, data, expected, first),
        *_not_alone(trial, data, expected, first),
    ]
    return {
        "sizes": kernel.sizes,
        "kernel": spec.name,
        "case": case.name,
        "status": "failed" if problems else "passed",
        "problems": problems,
        "errors": {name: [_finite(one.norm), _finite(one.element)] for name, one in judged.items()},
        "grid": list(case.grid or spec.grid),
        "bytes_moved": case.bytes_moved,
        "flops": case.flops,
        "seconds": round(time.perf_counter() - start, 4),
    }


def _unsteady(trial: Trial, data: Data, expected: Mapping[str, Expected], first: Memory) -> Iterator[str]:
    """What other runs of the same inputs leave otherwise, with other poison and with the same."""
    for poison, cause in ((OTHER_POISON, "an element unwritten, or read before it was"), (POISON, "chance")):
        again = trial.launch(data, poison)
        for name, wanted in expected.items():
            if not _same(first.array(name), again.array(name), wanted.where):
                yield f"{name}: another run left other bits ({cause})"
        for array in trial.kernel.spec.arrays:
            if not again.guards_hold(array.name):
                yield f"{array.name}: written past its end"


def _not_alone(trial: Trial, data: Data, expected: Mapping[str, Expected], first: Memory) -> Iterator[str]:
    """Rows whose results do not keep their bits when every other row changes."""
    case = trial.case
    for row in case.kept:
        alone = trial.launch(with_others_changed(case, data, row), POISON)
        for name in (name for name in expected if name in case.rows):
            if not _same_row(first.array(name), alone.array(name), case.rows[name], row):
                yield f"{name}: row {row} depends on its neighbours"


def with_others_changed(case: Case, data: Data, row: int) -> Data:
    """The inputs with every row but one replaced: floats by `others`, integers by the next row's."""
    changed = dict(data)
    for name, axis in case.rows.items():
        if name not in data:
            continue
        rows = data[name].transpose(0, axis).clone()
        others = [i for i in range(rows.shape[0]) if i != row]
        if rows.is_floating_point():
            rows[others] = case.others
        else:
            rows[others] = rows[others].roll(1, 0)
        changed[name] = rows.transpose(0, axis).contiguous()
    return changed


def _touched(memory: Memory, array: Array, data: Data, wanted: Expected | None) -> list[str]:
    """What was written that should not have been."""
    problems = [] if memory.guards_hold(array.name) else [f"{array.name}: written past its end"]
    if wanted is None and array.name not in data:
        return problems  # scratch
    changed = memory.changed(array.name)
    if wanted is not None:
        if wanted.where is None or wanted.elsewhere == "anything":
            return problems
        changed &= ~wanted.where
    count = int(changed.sum())
    return (
        [*problems, f"{array.name}: {count} elements written that are not its to write"]
        if count
        else problems
    )


def _same(one: Tensor, other: Tensor, where: Tensor | None) -> bool:
    equal = bits(one) == bits(other)
    return bool((equal if where is None else equal | ~where).all())


def _same_row(one: Tensor, other: Tensor, axis: int, row: int) -> bool:
    return bool((bits(one).select(axis, row) == bits(other).select(axis, row)).all())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
