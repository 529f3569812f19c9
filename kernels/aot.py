"""Ahead of time: `@ct.kernel` and signature -> TileIR bytecode -> cubin -> SASS, each fed the one before it.

No GPU and no CUDA toolkit is needed: the compiler and the disassemblers come out of the installed
`nvidia-cuda-*` packages, never from PATH. tileiras uses ptxas and libnvvm itself and, where CUDA_HOME or
CUDA_PATH is set, takes that toolkit's; an older one (13.0) makes it fail with "failed to compile Tile IR
program", code 5 and nothing else. So the child's environment leaves both out; this process's stays as it is.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import re
import subprocess
import tempfile
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cuda.tile as ct
from cuda.tile.compilation import KernelSignature, export_kernel

from kernels.sass import SassFacts, read_sass

BYTECODE_VERSION = "13.4"
TOOLKIT_VARIABLES = ("CUDA_HOME", "CUDA_PATH")
TOOL_SECONDS = 300.0
_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = {
    "tileiras": "nvidia-cuda-tileiras",
    "tileirdisasm": "nvidia-cuda-tileiras",
    "ptxas": "nvidia-cuda-nvcc",
    "libnvvm.so.4": "nvidia-nvvm",
    "cuobjdump": "nvidia-cuda-cuobjdump",
    "nvdisasm": "nvidia-cuda-nvdisasm",
}
_COMPILER = ("tileiras", "ptxas", "libnvvm.so.4")


class AotError(Exception):
    """Base of what can go wrong between a kernel's source and its machine code."""


class ToolMissing(AotError):
    """A tool of the chain is not installed, or its package does not fit the others."""


class StageFailed(AotError):
    """One step failed: `stage` is bytecode, tileir, cubin or sass; `exit_code` is the tool's, if one ran."""

    def __init__(self, stage: str, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.stage = stage
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One program or library of the chain, where it came from, and its place inside the package folder."""

    name: str
    path: Path
    location: str
    package: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Everything the chain needs, found. `ptxas` and `libnvvm` are started by tileiras, not by us."""

    tileiras: Tool
    tileirdisasm: Tool
    ptxas: Tool
    libnvvm: Tool
    cuobjdump: Tool
    nvdisasm: Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one kernel occupies.

    Registers are per thread, shared memory in bytes per block, stack and local memory in bytes per thread.
    The spill counts are instructions on local memory in the SASS.
    """

    registers: int
    shared_bytes: int
    stack_bytes: int
    local_bytes: int
    spill_stores: int
    spill_loads: int


def find_tools() -> Tools:
    """The chain's tools inside the installed packages. Errors: `ToolMissing` with the package to install."""
    found = {name: _find(name, package) for name, package in _PACKAGES.items()}
    releases = {found[name].version.rsplit(".", 1)[0] for name in _COMPILER}
    if len(releases) != 1:
        have = ", ".join(f"{found[name].package} {found[name].version}" for name in _COMPILER)
        raise ToolMissing(f"the compiler's packages are of different releases: {have}; install one release")
    return Tools(libnvvm=found.pop("libnvvm.so.4"), **found)


def supported_targets(tools: Tools) -> tuple[str, ...]:
    """The chips tileiras compiles for, such as sm_90 and sm_121, as its own help lists them."""
    shown = run_tool(tools.tileiras, ["--help"], "cubin")
    return tuple(re.findall(r"^\s+=(sm_\d+)\s", shown, re.MULTILINE))


def clean_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """A copy of the environment (this process's by default) without CUDA_HOME and CUDA_PATH."""
    source = os.environ if environment is None else environment
    return {name: value for name, value in source.items() if name not in TOOLKIT_VARIABLES}


def compile_bytecode(kernel: ct.kernel, signature: KernelSignature, target: str) -> bytes:
    """TileIR bytecode of one kernel. It is the front end's work, in this process; no tool runs.

    The same source gives the same bytes wherever the checkout lies. Errors: `StageFailed("bytecode")`.
    """
    _shorten_source_path(kernel)
    out = io.BytesIO()
    try:
        export_kernel(
            kernel,
            [signature],
            out,
            gpu_code=target,
            output_format="tileir_bytecode",
            bytecode_version=BYTECODE_VERSION,
        )
    except Exception as error:  # the front end raises its own types and plain TypeError and ValueError alike
        raise StageFailed(
            "bytecode", f"the cuTile front end refused the kernel for {target}: {error}"
        ) from error
    return out.getvalue()


def disassemble_bytecode(tools: Tools, bytecode: bytes) -> str:
    """The bytecode as TileIR text (MLIR), by tileirdisasm. Errors: `StageFailed("tileir")`."""
    with _file(bytecode, "kernel.tilebc") as path:
        text = run_tool(tools.tileirdisasm, [str(path)], "tileir")
    if "entry @" not in text:
        raise StageFailed("tileir", "tileirdisasm printed no entry; the bytecode holds no kernel")
    return text


def compile_cubin(
    tools: Tools, bytecode: bytes, target: str, *, environment: Mapping[str, str] | None = None
) -> bytes:
    """The chip's binary of this bytecode, by tileiras at -O3.

    `environment` replaces the cleaned copy of this process's for the child. Errors: `StageFailed("cubin")`.
    """
    with _file(bytecode, "kernel.tilebc") as path:
        out = path.with_name("kernel.cubin")
        argv = [str(path), "-o", str(out), "--gpu-name", target, "-O3"]
        run_tool(tools.tileiras, argv, "cubin", environment)
        if not out.is_file():
            raise StageFailed("cubin", f"tileiras ended well but wrote no cubin for {target}")
        return out.read_bytes()


def disassemble_cubin(tools: Tools, cubin: bytes) -> str:
    """The cubin's machine code as text, by nvdisasm. Errors: `StageFailed("sass")`."""
    with _file(cubin, "kernel.cubin") as path:
        text = run_tool(tools.nvdisasm, ["-c", str(path)], "sass")
    try:
        read_sass(text)
    except ValueError as error:
        raise StageFailed("sass", f"nvdisasm: {error}") from None
    return text


def resource_usage(tools: Tools, cubin: bytes, symbol: str, facts: SassFacts) -> Resources:
    """What the kernel `symbol` occupies, by cuobjdump; its spills from the SASS.

    Errors: `StageFailed("sass")`.
    """
    with _file(cubin, "kernel.cubin") as path:
        shown = run_tool(tools.cuobjdump, ["--dump-resource-usage", str(path)], "sass")
    line = re.search(rf"Function {re.escape(symbol)}:\s*\n\s*(.+)", shown)
    if line is None:
        raise StageFailed("sass", f"cuobjdump shows no function {symbol!r} in the cubin")
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line.group(1))}
    return Resources(
        registers=used["REG"],
        shared_bytes=used["SHARED"],
        stack_bytes=used["STACK"],
        local_bytes=used["LOCAL"],
        spill_stores=facts.spill_stores,
        spill_loads=facts.spill_loads,
    )


def run_tool(
    tool: Tool, arguments: list[str], stage: str, environment: Mapping[str, str] | None = None
) -> str:
    """Run one tool with a cleared environment, or the one given, and return what it printed.

    Errors: `StageFailed` with the tool's own words and its exit code, or the signal it died of, or that it
    ran too long; `ToolMissing` when it cannot be started.
    """
    child = clean_environment() if environment is None else dict(environment)
    try:
        done = subprocess.run(
            [str(tool.path), *arguments],
            env=child,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TOOL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise StageFailed(stage, f"{tool.name} did not end within {TOOL_SECONDS:.0f} s") from None
    except OSError as error:
        raise ToolMissing(f"{tool.name} of {tool.package} cannot be started: {error.strerror}") from None
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).decode("utf-8", "replace").split()) or "nothing"
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        message = f"{tool.name} {tool.version} failed with {ended} and said: {words}"
        raise StageFailed(stage, message, done.returncode)
    return done.stdout.decode("utf-8", "replace")


def _find(name: str, package: str) -> Tool:
    fix = f"pip install '{package}>=13.4,<13.5' into the Python that runs this"
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise ToolMissing(f"{name} is missing: the package {package} is not installed; {fix}") from None
    for entry in distribution.files or ():
        path = Path(str(entry.locate()))
        if entry.name == name and path.is_file():
            return Tool(
                name=name, path=path, location=entry.as_posix(), package=package, version=distribution.version
            )
    raise ToolMissing(f"{name} is missing: the package {package} is installed without it; {fix} again")


@contextlib.contextmanager
def _file(data: bytes, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="leanstack-aot-") as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path


def _shorten_source_path(kernel: ct.kernel) -> None:
    # The front end writes the source's absolute path into the bytecode as debug information. Published
    # bytecode names no home directory, and its hash must not depend on where the checkout lies. The new
    # prefix is no directory anywhere, so `inspect` asks the module's own loader for the source and cannot
    # pick up another checkout below the working directory.
    function = kernel._annotated_function.pyfunc  # cuda-tile 1.7 has no public name for it
    for found in (function, *function.__globals__.values()):
        code = getattr(found, "__code__", None)
        if isinstance(code, types.CodeType) and code.co_filename.startswith(f"{_ROOT}{os.sep}"):
            name = "leanstack:" + Path(code.co_filename).relative_to(_ROOT).as_posix()
            found.__code__ = code.replace(co_filename=name)
