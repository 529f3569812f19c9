"""Kernels ready to load: compiled here, or brought along from a machine that has the compiler.

The folder that travels is `index.json` and the files of each stage. Reading it needs neither compiler nor
YAML.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernels.qwen3 import kernel_specs
from kernels.spec import KernelSpec
from kernels.tiles import load_tiles
from lean.errors import ContractError, GateError, IntegrityError, PreflightError, UsageError
from lean.toolchain.compiler import toolchain_for
from lean.toolchain.sources import check_sources, hashed_sources, read_checked, sha256_of
from lean.toolchain.speed.contract_shapes import ContractShapes, shapes_document, shapes_of

SCHEMA = "kernel-folder/v1"
INDEX = "index.json"
STAGES = {"01_bytecode": "tilebc", "03_cubin": "cubin", "04_sass": "sass"}
CUBIN = "03_cubin"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """One kernel's machine code, with what the compiler says of it and each stage's bytes as far as known."""

    spec: KernelSpec
    stages: Mapping[str, bytes]
    resources: dict[str, Any]

    @property
    def cubin(self) -> bytes:
        """What the driver loads."""
        return self.stages[CUBIN]


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """All of a contract's kernels for one chip. `sources`: what they were made from."""

    kernels: Mapping[str, Binary]
    tools: dict[str, str]
    compiled_by: dict[str, Any]
    sources: dict[str, str]


def digest(spec: KernelSpec) -> str:
    """A specification's own hash."""
    return sha256_of(json.dumps(asdict(spec), sort_keys=True).encode())


def specs_for(shapes: ContractShapes, target: str) -> tuple[KernelSpec, ...]:
    """Every kernel of the contract with the target's tiles. Errors: `ContractError` where they do not fit."""
    try:
        specs: tuple[KernelSpec, ...] = kernel_specs(shapes.sizes, load_tiles(target))
    except ValueError as error:
        raise ContractError(f"contract {shapes.id}: no tiles for {target}: {error}") from None
    return specs


def compile_here(
    specs: Sequence[KernelSpec], target: str, say: Say, *, workers: int, cache: Path | None = None
) -> Binaries:
    """Compile with this machine's toolchain.

    Errors: `PreflightError` without one; `GateError` naming the kernel that does not compile; `UsageError`
    for a chip it does not know.
    """
    toolchain = toolchain_for((target,), "bring a folder along with --kernels")
    from kernels import aot, build

    try:
        built = build.build_all(toolchain.tools, specs, target, say, cache, workers)
    except aot.AotError as error:
        raise GateError(str(error)) from None
    kernels = {
        kernel.spec.name: Binary(
            spec=kernel.spec,
            stages={
                "01_bytecode": kernel.bytecode,
                CUBIN: kernel.cubin,
                "04_sass": kernel.sass.encode(),
            },
            resources=asdict(kernel.resources),
        )
        for kernel in built
    }
    return Binaries(
        kernels=kernels, tools=toolchain.versions, compiled_by={"here": True}, sources=hashed_sources(target)
    )


def write_folder(out: Path, shapes: ContractShapes, target: str, binaries: Binaries) -> dict[str, Any]:
    """Write the folder that travels. Returns its index.

    Errors: `UsageError` when `out` holds something; `PreflightError` when it cannot be written.
    """
    try:
        return _write_folder(out, shapes, target, binaries)
    except OSError as error:
        raise PreflightError(
            f"{error.filename or out}: {error.strerror}; give a writable --out with a few MB free"
        ) from None


def _write_folder(out: Path, shapes: ContractShapes, target: str, binaries: Binaries) -> dict[str, Any]:
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"--out: {out} is not empty; give an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, binary in binaries.kernels.items():
        files = {}
        for stage, data in binary.stages.items():
            (out / stage).mkdir(parents=True, exist_ok=True)
            (out / stage / f"{name}.{STAGES[stage]}").write_bytes(data)
            files[stage] = sha256_of(data)
        entry = {"kernel": name, "spec": digest(binary.spec), "sha256": files, "resources": binary.resources}
        entries.append(entry)
    index = {
        "schema": SCHEMA,
        "contract": shapes_document(shapes),
        "target": target,
        "tools": binaries.tools,
        "sources": binaries.sources,
        "kernels": entries,
    }
    (out / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return index


def folder_shapes(folder: Path, contract: str) -> ContractShapes:
    """The contract that a folder was compiled for.

    Errors: `UsageError` when it is another one or the folder is none; `IntegrityError` when the profile here
    is not the one it was compiled for.
    """
    index = _index(folder)
    return shapes_of(folder / INDEX, index, contract)


def read_folder(folder: Path, shapes: ContractShapes, target: str) -> Binaries:
    """The kernels of a folder, each checked against this checkout.

    Errors: `UsageError` when there is no such folder, or it is for another chip; `IntegrityError` when a file
    is not what was compiled, or was compiled from other sources.
    """
    specs = {spec.name: spec for spec in specs_for(shapes, target)}
    index = _index(folder)
    check_target_and_sources(folder, index, target)
    by = {"here": False, "folder": folder.name}
    kernels = {}
    for entry in index["kernels"]:
        spec = specs.get(entry["kernel"])
        if spec is None or digest(spec) != entry["spec"]:
            raise IntegrityError(
                f"{folder}: {entry['kernel']}: compiled for other shapes or tiles; do it again"
            )
        stages = {
            stage: read_checked(folder / stage / f"{spec.name}.{STAGES[stage]}", sha256)
            for stage, sha256 in entry["sha256"].items()
        }
        kernels[spec.name] = Binary(spec=spec, stages=stages, resources=entry["resources"])
    return Binaries(kernels=kernels, tools=index["tools"], compiled_by=by, sources=index["sources"])


def check_target_and_sources(folder: Path, index: Mapping[str, Any], target: str) -> None:
    """Errors: `UsageError` for another chip's folder, `IntegrityError` for one of other sources."""
    if index["target"] != target:
        raise UsageError(f"--kernels: {folder} is for {index['target']}, the GPU is {target}")
    check_sources(folder, hashed_sources(target), index["sources"])


def _index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_bytes())
        if not isinstance(index, dict) or index.get("schema") != SCHEMA:
            raise ValueError("no index of compiled kernels")
        return index
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--kernels: {folder}: {error}; make a folder with `python -m lean.toolchain kernels "
            "--compile-only`"
        ) from None
