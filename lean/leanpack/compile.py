"""The kernels of a pack, compiled. The compiler is asked for before anything is written."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.contracts import Contract
from lean.errors import ContractError, PackError, PreflightError, UsageError
from lean.leanpack.kernel_record import (
    ABI,
    COMPILED,
    ArrayRecord,
    ConstantRecord,
    KernelRecord,
    TargetRecord,
    compiled_name,
)
from lean.leanpack.lock import FileRecord

CACHE_VARIABLE = "XDG_CACHE_HOME"
_FIX = (
    "pip install 'cuda-tile[tileiras]==1.7.*' 'nvidia-cuda-cuobjdump>=13.4,<13.5' "
    "'nvidia-cuda-nvdisasm>=13.4,<13.5' into the Python that runs this, or build with --target cpu"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledTarget:
    """One target's record and the bytes of its files by their names in the pack."""

    record: TargetRecord
    contents: Mapping[str, bytes]

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The files as the manifest will list them."""
        return tuple(
            FileRecord(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in self.contents.items()
        )


class Compiler:
    """The toolchain, found. Errors of making one: `PreflightError` with the package to install."""

    def __init__(self) -> None:
        try:
            from kernels import aot, build
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "cuda":
                raise
            problem = "compiling kernels needs cuda-tile, which is not installed"
            raise PreflightError(f"{problem}; {_FIX}") from None
        self._aot, self._build = aot, build
        try:
            self._tools = aot.find_tools()
            self._known = aot.supported_targets(self._tools)
        except (aot.ToolMissing, aot.StageFailed) as error:
            raise PreflightError(f"compiling kernels: {error}; or build with --target cpu") from None

    def check(self, contract: Contract, target: str) -> None:
        """Whether there can be kernels, at no cost.

        Errors: `UsageError` for a chip the compiler does not know, `ContractError` for a geometry the kernels
        do not have, or that the target's tiles do not fit.
        """
        if target not in self._known:
            raise UsageError(f"target: {target[:40]!r} is unknown; known: cpu, {', '.join(self._known)}")
        kernel_specs_of(contract, target)

    @property
    def versions(self) -> dict[str, str]:
        """Everything that has a part in a cubin, by name."""
        return {
            "cuda-tile": importlib.metadata.version("cuda-tile"),
            **self._build.tool_versions(self._tools),
        }

    def compile(self, contract: Contract, target: str) -> CompiledTarget:
        """Every kernel of the contract for one chip; those built before come from the user's cache.

        Errors: `PackError` naming kernel and target where the compiler fails, or where registers spill and
        the tuning entry does not say so.
        """
        specs = kernel_specs_of(contract, target)
        try:
            built = self._build.build_all(self._tools, specs, target, _say, cache_folder())
        except self._aot.AotError as error:
            raise PackError(f"{contract.id}: {error}") from error
        _refuse_spills(built, target)
        records = tuple(_record(kernel) for kernel in built)
        contents: dict[str, bytes] = {}
        for kernel, record in zip(built, records, strict=True):
            contents |= {
                record.tilebc: kernel.bytecode,
                record.cubin: kernel.cubin,
                record.sass: kernel.sass.encode(),
            }
        return CompiledTarget(
            record=TargetRecord(name=target, runner="cuda", encoding=contract.encoding, kernels=records),
            contents=contents,
        )


def kernel_specs_of(contract: Contract, target: str) -> tuple[Any, ...]:
    """The specifications (`kernels.spec.KernelSpec`) of the contract's kernels with the target's tiles.

    Errors: `ContractError` for a geometry without kernels, and for tuning entries that do not fit.
    """
    from kernels.qwen3 import kernel_specs
    from kernels.tiles import load_tiles
    from lean.kernel_sizes import sizes_of

    sizes = sizes_of(contract)
    try:
        return tuple(kernel_specs(sizes, load_tiles(target)))
    except ValueError as error:  # of the tiles: a shape they do not divide, or that do not fit one another
        raise ContractError(f"contract {contract.id}: no tiles for {target}: {error}") from error


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where compiled kernels are kept: below XDG_CACHE_HOME, or ~/.cache where that is unset or relative."""
    said = environment.get(CACHE_VARIABLE, "")
    base = Path(said) if Path(said).is_absolute() else Path.home() / ".cache"
    return base / "leanstack" / "kernels"


def _refuse_spills(built: tuple[Any, ...], target: str) -> None:
    refused = [
        f"{kernel.spec.name} ({kernel.resources.spill_stores} stores, {kernel.resources.spill_loads} loads)"
        for kernel in built
        if (kernel.resources.spill_stores or kernel.resources.spill_loads) and not kernel.spec.spills
    ]
    if refused:
        raise PackError(
            f"{target}: registers spill in kernel {', '.join(refused)}; choose smaller tiles in "
            f'kernels/tuning/{target}.json, or say "spills": true there'
        )


def _record(kernel: Any) -> KernelRecord:
    spec, used = kernel.spec, kernel.resources
    tilebc, cubin, sass = (compiled_name(kernel.target, spec.name, kind) for kind in COMPILED)
    return KernelRecord(
        name=spec.name,
        operation=spec.operation,
        function=spec.function,
        symbol=spec.symbol,
        tilebc=tilebc,
        cubin=cubin,
        sass=sass,
        abi=ABI,
        grid=tuple(spec.grid),
        arrays=tuple(
            ArrayRecord(name=a.name, dtype=a.dtype, shape=tuple(a.shape), repeated=a.repeated)
            for a in spec.arrays
        ),
        constants=tuple(ConstantRecord(name=name, value=value) for name, value in spec.constants),
        occupancy=spec.occupancy,
        warps=spec.warps,
        registers=used.registers,
        shared_bytes=used.shared_bytes,
        stack_bytes=used.stack_bytes,
        spill_stores=used.spill_stores,
        spill_loads=used.spill_loads,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
