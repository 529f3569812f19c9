"""Run compiled kernels on a GPU against FP64, from prebuilt binaries: no compiler is needed, torch is.

Every case starts from fresh inputs. Arrays that the kernel is to write, and its scratch, are poisoned, and
all arrays lie between guard bands. A case is run three times, twice with one poison and once with another:
what it writes must be the same bits each time, so no element was left unwritten or taken from scratch. Then
every row but one is changed, and that row's results must keep their bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kernels.case import DTYPES, Case, Data, Draw, Expected, cases_of
from kernels.spec import Array, KernelSpec
from lean.errors import GateError, IntegrityError, PreflightError, UsageError, error_document
from lean.toolchain.probe import SCHEMA
from lean.toolchain.shapes import specs_of
from lean.toolchain.sources import hashed_sources

SEED = 20260725
GUARD = 4096  # bytes before and behind every array
POISON, OTHER_POISON = 0xFF, 0x7F  # NaN, then 3.4e38, in bf16 and f32 alike
ABOUT = (
    "Proof of the appliance's kernels on a GPU: each compiled kernel, on each geometry, against FP64 on "
    "fresh seeded inputs. Arrays to be written and scratch were poisoned (NaN, then 3.4e38) and lie "
    "between guard bands; three runs had to leave the same bits; with every other row changed, a row had "
    "to keep its bits; what no kernel may touch had to keep its bits. `errors` of a case are, for each "
    "output, the worst row's ‖got - want‖ / ‖want‖ and the worst |got - want| / (|want| + rms(want)); "
    "`tolerances` gives their limits by kernel function and output, with the reason. bytes_moved and "
    "flops follow from the shape, they are not measured. Hashes are SHA-256."
)


class Machine(Protocol):
    """Where kernels run."""

    device: torch.device
    facts: dict[str, Any]

    def load(self, spec: KernelSpec, cubin: bytes) -> Any:
        """Make a kernel ready. Errors: `GateError`."""

    def run(self, kernel: Any, spec: KernelSpec, case: Case, tensors: Sequence[Tensor]) -> None:
        """Launch it on tensors in the order of the specification, and return when it is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One entry of a build's index, its binary read and checked."""

    sizes: str
    spec: KernelSpec
    cubin: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An output's errors and what is wrong with it, if anything."""

    norm: float
    element: float
    problems: tuple[str, ...]


class Memory:
    """The arrays of one launch, each between guard bands."""

    def __init__(
        self, spec: KernelSpec, data: Mapping[str, Tensor], poison: int, device: torch.device
    ) -> None:
        self.poison = poison
        self._arrays = {array.name: array for array in spec.arrays}
        self._initial = {
            array.name: _storage(array, data.get(array.name), poison, device) for array in spec.arrays
        }
        self._storage = {name: storage.clone() for name, storage in self._initial.items()}

    def tensors(self) -> list[Tensor]:
        """What the kernel gets."""
        return [self.array(name) for name in self._arrays]

    def array(self, name: str) -> Tensor:
        """What is in one array now."""
        return _view(self._arrays[name], self._storage[name])

    def guards_hold(self, name: str) -> bool:
        """Whether nothing was written before or behind the array."""
        storage = self._storage[name]
        return bool((storage[:GUARD] == self.poison).all() and (storage[-GUARD:] == self.poison).all())

    def changed(self, name: str) -> Tensor:
        """Which elements have other bits than before the launch."""
        return bits(self.array(name)) != bits(_view(self._arrays[name], self._initial[name]))


def bits(tensor: Tensor) -> Tensor:
    """Its elements as integers, so that NaN equals itself."""
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def read_build(folder: Path, target: str, only: Iterable[str] = ()) -> tuple[dict[str, Any], list[Kernel]]:
    """A build's index and its kernels, those of the geometries `only` where given.

    Errors: `UsageError` when there is no build for this chip, `IntegrityError` when a binary is not the one
    in the index, or the build was made from other sources than this checkout's.
    """
    try:
        index = json.loads((folder / "index.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"--kernels: {folder}: no build: {error}; make one with `build`") from None
    if index["target"] != target:
        raise UsageError(f"--kernels: {folder} is for {index['target']}, the GPU is {target}")
    here = hashed_sources(target)
    stale = [path for path in here | index["sources"] if here.get(path) != index["sources"].get(path)]
    if stale:
        raise IntegrityError(
            f"{folder}: built from another {', '.join(stale)}; build again from this checkout"
        )
    wanted = set(only)
    specs = {
        (name, spec.name): spec
        for name in {entry["sizes"] for entry in index["kernels"]}
        for spec in specs_of(name, target)
    }
    kernels = []
    for entry in index["kernels"]:
        if wanted and entry["sizes"] not in wanted:
            continue
        cubin = (folder / entry["file"]).read_bytes()
        if hashlib.sha256(cubin).hexdigest() != entry["sha256"]:
            raise IntegrityError(f"{folder / entry['file']}: not the binary that was built")
        spec = specs[entry["sizes"], entry["kernel"]]
        kernels.append(Kernel(sizes=entry["sizes"], spec=spec, cubin=cubin))
    if not kernels:
        raise UsageError(f"--kernels: {folder}: no kernels of {', '.join(sorted(wanted))}")
    return index, kernels


def prove(
    folder: Path, machine: Machine, say: Callable[[str], None], sizes: Iterable[str] = ()
) -> dict[str, Any]:
    """Run every case of a build. Returns the probe; one with an `error` is a proof that failed.

    Errors: those of `read_build`.
    """
    started = datetime.now(UTC)
    index, kernels = read_build(folder, str(machine.facts["sm"]), sizes)
    results: list[dict[str, Any]] = []
    tolerances: dict[str, Any] = {}
    fault = None
    try:
        for kernel in kernels:
            loaded = machine.load(kernel.spec, kernel.cubin)
            for case in cases_of(kernel.spec):
                results.append(run_case(machine, loaded, kernel, case, tolerances))
                if results[-1]["problems"]:
                    say(f"FAILED {_named(results[-1])}")
    except GateError as error:  # after a fault nothing on this device can be trusted
        fault = error
    failed = [result for result in results if result["problems"]]
    if fault is None and failed:
        fault = GateError(f"{len(failed)} of {len(results)} cases failed; the first: {_named(failed[0])}")
    status = "failed" if fault else "passed"
    proved, missing = covered_operations(kernels)
    sources = hashed_sources(str(machine.facts["sm"]), proved) if proved else {}
    document = {
        "schema": SCHEMA,
        "about": ABOUT,
        "status": status,
        "run": started.strftime("%Y%m%dT%H%M%SZ"),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 3),
        "gpu": {"status": status, "device": machine.facts},
        "torch": torch.__version__,
        "seed": SEED,
        "tools": index["tools"],
        "sources": [{"path": path, "sha256": sha256} for path, sha256 in sources.items()],
        "operations": list(proved),
        "not_covered": missing,
        "kernels": index["kernels"],
        "tolerances": tolerances,
        "cases": results,
    }
    say(f"{status}: {len(results)} cases of {len(kernels)} kernels in {document['seconds']} s")
    return document | (error_document(fault) if fault else {})


def covered_operations(kernels: Sequence[Kernel]) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Operations whose every kernel function was run, and of the others the functions that were not."""
    ran = {kernel.spec.function for kernel in kernels}
    every = {spec.function for spec in specs_of("4b", "any")}
    missing: dict[str, list[str]] = {}
    for function in sorted(every - ran):
        missing.setdefault(function.split(".")[0], []).append(function.split(":")[1])
    return tuple(sorted({function.split(".")[0] for function in ran} - missing.keys())), missing


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


def judge(got: Tensor, wanted: Expected) -> Judged:
    """Compare one output with what it must be, where it must be; NaN is never right."""
    where = torch.ones_like(got, dtype=torch.bool) if wanted.where is None else wanted.where
    want = torch.where(where, wanted.value.double(), 0.0)
    off = torch.where(where, got.double(), 0.0) - want
    problems = []
    wrong = int(off.isnan().sum())
    if wrong:
        problems.append(f"{wrong} elements are NaN")
    off, count = (
        off.flatten(1) if off.dim() > 1 else off.unsqueeze(1),
        where.reshape(where.shape[0], -1).sum(1),
    )
    want = want.reshape(off.shape)
    rms = (want.square().sum(1) / count.clamp(min=1)).sqrt()
    norms = _ratio(off.square().sum(1).sqrt(), want.square().sum(1).sqrt())
    elements = _ratio(off.abs(), want.abs() + rms.unsqueeze(1))
    norm, element = (float(x.nan_to_num(math.inf).max()) for x in (norms, elements))
    limits = wanted.tolerance
    if norm > limits.norm:
        row = int(norms.nan_to_num(math.inf).argmax())
        problems.append(f"row {row} is off by {norm:.3g} of its norm; {limits.norm:.3g} is allowed")
    if element > limits.element:
        problems.append(f"an element is off by {element:.3g}; {limits.element:.3g} is allowed")
    return Judged(norm=norm, element=element, problems=tuple(problems))


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


def open_gpu() -> Machine:
    """The first GPU. Errors: `PreflightError` where there is none, or no driver."""
    from kernels import driver

    class Gpu:
        """Torch's tensors under the driver's launches; both use the device's primary context."""

        def __init__(self) -> None:
            self.device = torch.device("cuda", 0)
            torch.zeros(1, device=self.device)  # makes the primary context
            self._driver = driver.open_device()
            self.facts = asdict(self._driver.facts)

        def load(self, spec: KernelSpec, cubin: bytes) -> Any:
            try:
                return self._driver.load(cubin).kernel(spec.symbol)
            except driver.DriverError as error:
                raise GateError(f"{spec.name}: {error}") from None

        def run(self, kernel: Any, spec: KernelSpec, case: Case, tensors: Sequence[Tensor]) -> None:
            arguments = [
                driver.Bound(tensor.data_ptr(), array.shape, array.strides)
                for tensor, array in zip(tensors, spec.arrays, strict=True)
            ]
            torch.cuda.synchronize()
            try:
                self._driver.launch(kernel, grid=case.grid or spec.grid, arguments=arguments)
                self._driver.synchronise()
            except driver.DriverError as error:
                raise GateError(str(error)) from None

    try:
        return Gpu()
    except (driver.DriverError, RuntimeError, AssertionError) as error:  # the last: a torch without CUDA
        raise PreflightError(f"no GPU to prove kernels on: {error}") from None


def _storage(array: Array, value: Tensor | None, poison: int, device: torch.device) -> Tensor:
    storage = torch.full((array.nbytes + 2 * GUARD,), poison, dtype=torch.uint8, device=device)
    if value is not None:
        if value.shape != array.shape or value.dtype != DTYPES[array.dtype]:
            raise ValueError(f"{array.name}: {value.dtype} {list(value.shape)}; expected {array}")
        _view(array, storage).copy_(value)
    return storage


def _view(array: Array, storage: Tensor) -> Tensor:
    return storage[GUARD : GUARD + array.nbytes].view(DTYPES[array.dtype]).view(array.shape)


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


def _ratio(off: Tensor, size: Tensor) -> Tensor:
    """off / size; what is off where nothing should be is infinitely so."""
    return torch.where(off == 0, 0.0, off / size)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _named(result: Mapping[str, Any]) -> str:
    return f"{result['sizes']} {result['kernel']} {result['case']}: {'; '.join(result['problems'])}"
