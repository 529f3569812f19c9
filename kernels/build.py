"""From specifications to machine code: every kernel of a target on all cores, kept in a cache by content.

The front end is Python in this process, so it runs in the calling thread, one kernel after another; the tools
behind it are processes, one to a core. A cache entry is one file, named by the sha256 of bytecode, target and
tool versions: a line with the sha256 of all that follows, a line of JSON, then cubin and SASS. An entry that
cannot be read, or is not what its first line says, is built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from kernels.aot import (
    AotError,
    Resources,
    StageFailed,
    Tools,
    compile_bytecode,
    compile_cubin,
    disassemble_cubin,
    resource_usage,
)
from kernels.sass import read_sass
from kernels.signature import signature, tile_kernel
from kernels.spec import KernelSpec

Say = Callable[[str], None]


class BuildFailed(AotError):
    """One kernel could not be built; the message names it, the target and what the stage said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltKernel:
    """One kernel for one target, in every form from bytecode to SASS text."""

    spec: KernelSpec
    target: str
    bytecode: bytes
    cubin: bytes
    sass: str
    resources: Resources


def tool_versions(tools: Tools) -> dict[str, str]:
    """Version of each tool that has a part in the result."""
    names = ("tileiras", "ptxas", "libnvvm", "nvdisasm", "cuobjdump")
    return {name: getattr(tools, name).version for name in names}


def build_kernel(tools: Tools, spec: KernelSpec, target: str, cache: Path | None = None) -> BuiltKernel:
    """One kernel for `target`, from `cache` where that holds it. Errors: `BuildFailed`, `ToolMissing`."""
    return _finish(tools, spec, target, _front_end(spec, target), cache)


def build_all(
    tools: Tools,
    specs: Sequence[KernelSpec],
    target: str,
    say: Say,
    cache: Path | None = None,
    workers: int | None = None,
) -> tuple[BuiltKernel, ...]:
    """Every kernel for `target`, in the order of `specs`; `say` gets a line for each.

    `workers`: cores to use, all by default.

    Errors: those of `build_kernel`, for the first kernel that fails; the others are not begun any more.
    """
    cores = workers or len(os.sched_getaffinity(0))
    say(f"{target}: {len(specs)} kernels on {cores} cores")
    built: list[BuiltKernel] = []
    pool = ThreadPoolExecutor(cores)
    try:
        running: list[Future[BuiltKernel]] = []
        for spec in specs:
            running.append(pool.submit(_finish, tools, spec, target, _front_end(spec, target), cache))
        for done in running:
            kernel = done.result()
            built.append(kernel)
            used = kernel.resources
            say(
                f"{target}: {len(built)}/{len(specs)} {kernel.spec.name}, {used.registers} registers, "
                f"{used.shared_bytes} bytes shared"
            )
    finally:
        pool.shutdown(cancel_futures=True)
    return tuple(built)


def _front_end(spec: KernelSpec, target: str) -> bytes:
    try:
        return compile_bytecode(tile_kernel(spec), signature(spec), target)
    except StageFailed as error:
        raise BuildFailed(f"kernel {spec.name} for {target}: {error}") from error


def _finish(tools: Tools, spec: KernelSpec, target: str, bytecode: bytes, cache: Path | None) -> BuiltKernel:
    entry = None if cache is None else cache / _key(tools, target, bytecode)
    found = None if entry is None else _read(entry)
    if found is None:
        try:
            cubin = compile_cubin(tools, bytecode, target)
            sass = disassemble_cubin(tools, cubin)
            found = cubin, sass, resource_usage(tools, cubin, spec.symbol, read_sass(sass))
        except StageFailed as error:
            raise BuildFailed(f"kernel {spec.name} for {target}: {error}") from error
        if entry is not None:
            _keep(entry, *found)
    cubin, sass, resources = found
    return BuiltKernel(
        spec=spec, target=target, bytecode=bytecode, cubin=cubin, sass=sass, resources=resources
    )


def _key(tools: Tools, target: str, bytecode: bytes) -> str:
    about = {"bytecode": hashlib.sha256(bytecode).hexdigest(), "target": target, **tool_versions(tools)}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _read(entry: Path) -> tuple[bytes, str, Resources] | None:
    try:
        digest, rest = entry.read_bytes().split(b"\n", 1)
        if hashlib.sha256(rest).hexdigest().encode() != digest:
            return None
        head, body = rest.split(b"\n", 1)
        facts = json.loads(head)
        size = facts["cubin_bytes"]
        return body[:size], body[size:].decode(), Resources(**facts["resources"])
    except (OSError, ValueError, KeyError, TypeError):  # absent, cut short, or of another release's form
        return None


def _keep(entry: Path, cubin: bytes, sass: str, resources: Resources) -> None:
    """Write beside and rename. A cache that cannot be written costs time and nothing else."""
    facts = {"cubin_bytes": len(cubin), "resources": asdict(resources)}
    rest = json.dumps(facts).encode() + b"\n" + cubin + sass.encode()
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor, staged = tempfile.mkstemp(prefix=".staged-", dir=entry.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
            os.replace(staged, entry)
        except BaseException:
            os.unlink(staged)
            raise
    except OSError:
        return
