"""The systems we are measured beside: their pinned packages, and the command that serves a model.

None runs in eager mode where it has a faster one: vLLM and SGLang capture CUDA graphs by default,
transformers gets its static cache with compilation for one stream on a GPU and continuous batching for
several, llama.cpp is built for this very machine. Caches of earlier prompts are off where a system has one;
transformers keeps none for these requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lean.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An archive that is built instead of installed. `folder`: of the sources, inside the archive."""

    url: str
    sha256: str
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One system. `package`: the distribution whose version is the system's. `dialect`: of its requests.

    `requirements` are pinned; what they pull in is recorded as it was installed. `needs_gpu`: it does not run
    without one. `as_run`: how it runs, for the record.
    """

    name: str
    package: str
    requirements: tuple[str, ...]
    dialect: str
    needs_gpu: bool
    as_run: str
    source: Source | None = None

    @property
    def version(self) -> str:
        """The pinned version."""
        if self.source is not None:
            return self.source.folder.split("/")[0].rpartition("-")[2]
        pins = (pin.partition("==") for pin in self.requirements)
        return next(version for name, _, version in pins if name.partition("[")[0] == self.package)


SYSTEMS: Mapping[str, System] = MappingProxyType(
    {
        "transformers": System(
            name="transformers",
            package="transformers",
            requirements=(
                "transformers[serving]==5.17.0",
                "torch==2.13.0",
                "accelerate==1.15.0",
                "requests==2.34.2",  # its command line imports it and does not ask for it
            ),
            dialect="transformers",
            needs_gpu=False,
            as_run="`transformers serve`, static cache, compiled on a GPU; continuous batching for batches",
        ),
        "llama.cpp": System(
            name="llama.cpp",
            package="llama_cpp_python",
            requirements=("gguf==0.19.0", "numpy==2.4.6", "cmake==4.4.4", "ninja==1.13.2"),
            dialect="llama.cpp",
            needs_gpu=False,
            as_run="llama-server built from source for this machine, bf16 weights, no prompt cache",
            source=Source(
                url=(
                    "https://files.pythonhosted.org/packages/ec/e9/"
                    "e7de2b0463ea3ffbf0ede6cb21b58c1258a8f6521aae45ca773a59fe7cf3/llama_cpp_python-0.3.36.tar.gz"
                ),
                sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
                folder="llama_cpp_python-0.3.36/vendor/llama.cpp",
            ),
        ),
        "vllm": System(
            name="vllm",
            package="vllm",
            requirements=("vllm==0.33.0",),
            dialect="vllm",
            needs_gpu=True,
            as_run="`vllm serve` with its CUDA graphs and compilation, no prefix cache",
        ),
        "sglang": System(
            name="sglang",
            package="sglang",
            requirements=("sglang[all]==0.5.23",),
            dialect="vllm",
            needs_gpu=True,
            as_run="`sglang.launch_server` with its CUDA graphs, no radix cache",
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to serve. `model`: the checkpoint's folder, `weights`: the file that llama.cpp reads.

    `length`: positions a stream may take. `threads`: of the CPU; None lets the system choose.
    """

    venv: Path
    model: Path
    weights: Path | None
    port: int
    slots: int
    length: int
    gpu: bool
    threads: int | None


def system_named(name: str) -> System:
    """Errors: `UsageError` naming the systems there are."""
    if name not in SYSTEMS:
        raise UsageError(f"no system {name!r}; expected one of {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def served_name(system: System, model: Path) -> str:
    """The model's name in requests: a fixed one where the server lets us choose it."""
    return str(model) if system.name == "transformers" else "baseline"


def command(system: System, launch: Launch) -> tuple[str, ...]:
    """The server's argv; it listens on 127.0.0.1 alone."""
    make = {
        "transformers": _transformers,
        "llama.cpp": _llama_cpp,
        "vllm": _vllm,
        "sglang": _sglang,
    }[system.name]
    return tuple(make(launch))


def settings(launch: Launch) -> dict[str, str]:
    """What the server's process is set to beside the user's own: no network, unbuffered words."""
    threads = {"OMP_NUM_THREADS": str(launch.threads)} if launch.threads is not None else {}
    return {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **threads}


def _transformers(launch: Launch) -> list[str]:
    argv = [str(launch.venv / "bin" / "transformers"), "serve", str(launch.model)]
    argv += ["--host", "127.0.0.1", "--port", str(launch.port), "--dtype", "bfloat16"]
    argv += ["--device", "cuda:0" if launch.gpu else "cpu"]
    if launch.slots > 1:
        return [*argv, "--continuous-batching"]
    return [*argv, "--compile"] if launch.gpu else argv


def _llama_cpp(launch: Launch) -> list[str]:
    argv = [str(launch.venv / "bin" / "llama-server"), "--model", str(launch.weights), "--alias", "baseline"]
    argv += ["--host", "127.0.0.1", "--port", str(launch.port), "--parallel", str(launch.slots)]
    argv += ["--ctx-size", str(launch.length * launch.slots), "--no-webui", "--no-cache-prompt"]
    argv += ["--cache-ram", "0"]  # or it saves and restores earlier prompts between requests
    argv += ["--n-gpu-layers", "999"] if launch.gpu else []
    return argv + (["--threads", str(launch.threads)] if launch.threads is not None else [])


def _vllm(launch: Launch) -> list[str]:
    argv = [str(launch.venv / "bin" / "vllm"), "serve", str(launch.model), "--host", "127.0.0.1"]
    argv += ["--port", str(launch.port), "--served-model-name", "baseline", "--dtype", "bfloat16"]
    argv += ["--max-model-len", str(launch.length), "--max-num-seqs", str(launch.slots)]
    return [*argv, "--no-enable-prefix-caching"]


def _sglang(launch: Launch) -> list[str]:
    argv = [str(launch.venv / "bin" / "python"), "-m", "sglang.launch_server"]
    argv += ["--model-path", str(launch.model), "--host", "127.0.0.1", "--port", str(launch.port)]
    argv += ["--served-model-name", "baseline", "--dtype", "bfloat16"]
    argv += ["--context-length", str(launch.length), "--max-running-requests", str(launch.slots)]
    return [*argv, "--disable-radix-cache"]
