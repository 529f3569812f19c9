"""What `build` left: its index, and every kernel with its binary, checked against this checkout's sources."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.spec import KernelSpec
from lean.errors import UsageError
from lean.toolchain.shapes import specs_of
from lean.toolchain.sources import check_sources, hashed_sources, read_checked


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One entry of a build's index, its binary read and checked."""

    sizes: str
    spec: KernelSpec
    cubin: bytes


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
    check_sources(folder, hashed_sources(target), index["sources"])
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
        cubin = read_checked(folder / entry["file"], entry["sha256"])
        spec = specs[entry["sizes"], entry["kernel"]]
        kernels.append(Kernel(sizes=entry["sizes"], spec=spec, cubin=cubin))
    if not kernels:
        raise UsageError(f"--kernels: {folder}: no kernels of {', '.join(sorted(wanted))}")
    return index, kernels
