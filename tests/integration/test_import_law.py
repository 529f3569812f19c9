"""Imports point downward only: remote -> lean -> kernels, with the libraries each layer may use."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("remote", "lean", "kernels", "tasks")
STANDARD = frozenset(sys.stdlib_module_names)

# Folder or file -> (what of ours it may import, which libraries). The longest matching prefix decides.
LAW: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "tasks.py": (("remote",), ("invoke",)),
    "remote": (("remote",), ("invoke",)),
    "remote/paths.py": ((), ()),
    "remote/console.py": (("lean.errors",), ("rich",)),
    # lean.transfer, lean.jobs and lean.host_facts are standard library; their source runs on both ends.
    "remote/loopback": (
        ("remote.loopback", "remote.paths", "lean.jobs.process", "lean.errors", "lean.cli"),
        ("asyncssh",),
    ),
    "remote/ssh": (
        ("remote.ssh", "remote.loopback", "remote.paths", "lean.contracts", "lean.errors"),
        ("fabric", "paramiko"),
    ),
    "remote/transfer": (
        ("remote.transfer", "remote.ssh", "remote.paths", "lean.transfer", "lean.errors"),
        (),
    ),
    "remote/host": (
        (
            *("remote.host", "remote.transfer", "remote.ssh", "remote.paths", "remote.console"),
            *("lean.jobs", "lean.files.exclusive", "lean.host_facts", "lean.contracts", "lean.errors"),
        ),
        ("packaging",),
    ),
    "remote/appliance": (
        (
            *("remote.appliance", "remote.host", "remote.transfer", "remote.ssh", "remote.paths"),
            *("remote.console", "lean.contracts", "lean.errors", "lean.markdown"),
        ),
        (),
    ),
    # The pins of the other systems, which are data.
    "remote/appliance/baseline_packages.py": (("lean.baseline.systems", "remote.host"), ()),
    # The journal of a sweep is replaced in one step, and has one writer.
    "remote/appliance/sweep_journal.py": (
        (
            *("remote.appliance", "remote.paths", "lean.files.exclusive", "lean.files.staging"),
            *("lean.strict_json", "lean.contracts", "lean.errors"),
        ),
        (),
    ),
    "remote/tasks": (
        (
            *(
                "remote",
                "lean.toolchain.shown",
                "lean.toolchain.speed.shown",
                "lean.contracts",
                "lean.errors",
            ),
            *(f"lean.bench.{name}" for name in ("results", "run_row", "shown_run", "compare")),
            *(f"lean.bench.{name}" for name in ("comparable", "export", "figures")),
            *("lean.ledger", "lean.markdown"),
        ),
        ("invoke",),
    ),
    "remote/ui": (
        (
            *("remote.ui", "remote.loopback.control", "remote.paths", "lean.bearer"),
            *("lean.bench.results", "lean.bench.run_row", "lean.bench.shown_run"),
            *("lean.bench.dialect", "lean.soak.record", "lean.http_server", "lean.strict_json"),
            *("lean.contracts", "lean.errors"),
        ),
        ("starlette", "uvicorn", "httpx"),
    ),
    "remote/program.py": (("remote.tasks", "lean.__version__"), ("invoke",)),
    "lean/errors.py": ((), ()),
    "lean/cli.py": (("lean.errors",), ()),
    "lean/transfer": (("lean.transfer",), ()),
    "lean/bearer.py": (("lean.errors",), ()),
    "lean/child.py": (("lean.errors",), ()),
    "lean/http_server.py": ((), ("uvicorn",)),
    "lean/files": (("lean.files", "lean.strict_json", "lean.errors"), ()),
    "lean/host_venv.py": (("lean.files", "lean.errors", "lean.cli"), ()),
    "lean/host_facts.py": ((), ()),
    "lean/jobs": (("lean.errors", "lean.cli", "lean.jobs"), ()),
    "lean/contracts": (("lean.contracts", "lean.errors"), ("yaml",)),
    "lean/models": (
        (
            *("lean.models", "lean.leanpack", "lean.files", "lean.contracts", "lean.errors", "lean.cli"),
            "lean.__version__",
        ),
        ("huggingface_hub", "modelscope", "modelscope_hub", "safetensors", "numpy", "httpx"),
    ),
    "lean/relay": (
        (
            *("lean.relay", "lean.transfer.channel", "lean.models", "lean.leanpack", "lean.files"),
            *("lean.contracts", "lean.errors", "lean.cli"),
        ),
        ("requests", "urllib3"),
    ),
    "lean/leanpack": (
        (
            *("lean.leanpack", "lean.files", "lean.strict_json", "lean.contracts", "lean.errors"),
            *("lean.cli", "lean.host_facts", "lean.__version__"),
        ),
        ("safetensors", "numpy"),
    ),
    # What an encoding's arrays are, which is data.
    "lean/leanpack/layout.py": (("lean.contracts", "lean.errors", "kernels.encodings"), ()),
    "lean/leanpack/encode.py": (("lean.leanpack.convert", "kernels.encodings"), ("numpy",)),
    # Where a pack is built, and what whoever serves it makes of its records.
    "lean/leanpack/compile.py": (
        ("lean.leanpack", "lean.contracts", "lean.errors", "lean.kernel_sizes", "kernels"),
        (),
    ),
    "lean/leanpack/kernel_spec.py": (
        ("lean.leanpack.kernel_record", "kernels.spec"),
        (),
    ),
    "lean/leanpack/random_weights.py": (
        ("lean.leanpack", "lean.files", "lean.contracts", "lean.demo.CHECKPOINT_DIR"),
        ("numpy",),
    ),
    "lean/toolchain": (
        (
            *("lean.toolchain", "lean.files", "lean.contracts", "lean.errors", "lean.cli"),
            *("lean.host_facts", "lean.kernel_sizes", "lean.bench.host_state", "kernels"),
        ),
        ("numpy",),
    ),
    "lean/toolchain/shown.py": (("lean.markdown",), ()),
    "lean/toolchain/speed/shown.py": (("lean.toolchain.shown",), ()),
    **{
        f"lean/toolchain/{name}.py": (("lean.toolchain", "lean.errors", "kernels"), ("torch",))
        for name in (
            *("chip/memory", "chip/judge", "chip/machine", "chip/trial", "proof/prove"),
            *("speed/rotation", "speed/peer", "speed/limits", "tune/candidate"),
        )
    },
    "lean/toolchain/speed/bench.py": (
        ("lean.toolchain", "lean.bench.host_state", "lean.errors", "lean.host_facts", "kernels"),
        ("torch",),
    ),
    "lean/leanserve": (
        (
            *("lean.leanserve", "lean.leanpack", "lean.files", "lean.bearer", "lean.contracts"),
            *("lean.errors", "lean.cli", "lean.host_facts", "lean.in_process", "kernels"),
        ),
        ("tokenizers",),
    ),
    "lean/leanserve/http": (
        ("lean.leanserve", "lean.http_server", "lean.strict_json"),
        ("starlette", "uvicorn", "h11", "prometheus_client"),
    ),
    "lean/leanserve/engine.py": (
        tuple(f"lean.leanserve.{name}" for name in ("region_times", "request", "runner", "stats", "stream")),
        (),
    ),
    "lean/leanserve/runner.py": (("lean.leanserve.region_times",), ()),
    "lean/leanserve/region_times.py": (("lean.errors",), ()),
    "lean/leanserve/limits.py": (("lean.errors", "lean.leanserve.runner"), ()),
    "lean/leanserve/torch_runner.py": (("lean", "kernels"), ("torch", "numpy")),
    "lean/leanserve/model.py": (("lean", "kernels"), ("torch", "numpy")),
    "lean/leanserve/kv_cache.py": (("lean", "kernels"), ("torch", "numpy")),
    "lean/leanserve/sampler.py": (("lean", "kernels"), ("torch", "numpy")),
    "lean/leanserve/plan.py": (
        (
            *("lean.contracts", "lean.errors", "lean.host_facts", "lean.kernel_sizes", "lean.weight_bytes"),
            "kernels.qwen3",
        ),
        (),
    ),
    "lean/leanserve/projection.py": (
        (
            *("lean.contracts", "lean.errors", "lean.kernel_sizes", "lean.leanserve.measured_run"),
            *("lean.leanserve.step_reads", "lean.weight_bytes"),
        ),
        (),
    ),
    "lean/leanserve/measured_run.py": (("lean.errors", "lean.files.safe_path", "lean.in_process"), ()),
    "lean/leanserve/step_reads.py": (("kernels.qwen3", "kernels.spec", "kernels.tiles"), ()),
    "lean/leanserve/cuda": (
        (
            *("lean.leanserve", "lean.leanpack", "lean.contracts", "lean.errors", "lean.kernel_sizes"),
            *("lean.in_process", "kernels.driver", "kernels.qwen3", "kernels.spec"),
            "kernels.read_bandwidth.spec",
        ),
        ("numpy",),
    ),
    "lean/percentile.py": ((), ()),
    "lean/markdown.py": ((), ()),
    "lean/weight_bytes.py": (("lean.contracts", "lean.errors", "kernels.encodings"), ()),
    "lean/kernel_sizes.py": (("lean.contracts", "lean.errors", "kernels.qwen3"), ()),
    "lean/bench": (
        (
            *("lean.bench", "lean.leanpack", "lean.files", "lean.bearer", "lean.contracts"),
            *("lean.errors", "lean.cli", "lean.host_facts", "lean.in_process", "lean.weight_bytes"),
            *("lean.percentile", "lean.markdown"),
        ),
        ("httpx", "numpy", "tokenizers"),
    ),
    "lean/accuracy": (
        (
            *("lean.accuracy", "lean.leanserve", "lean.leanpack", "lean.bench.record", "lean.bench.served"),
            *("lean.files", "lean.contracts", "lean.errors", "lean.cli", "lean.host_facts"),
            *("lean.bench.arguments", "lean.markdown"),
        ),
        ("numpy",),
    ),
    "lean/regions": (
        (
            *("lean.regions", "lean.leanserve", "lean.leanpack", "lean.bench.record", "lean.bench.served"),
            *("lean.files", "lean.contracts", "lean.errors", "lean.cli", "lean.host_facts"),
            *("lean.in_process", "lean.percentile", "lean.strict_json", "kernels.qwen3"),
            *("lean.bench.arguments", "lean.markdown"),
        ),
        (),
    ),
    "lean/costs": (
        (
            *("lean.costs", "lean.leanpack", "lean.leanserve", "lean.bench", "lean.bearer"),
            *("lean.contracts", "lean.errors", "lean.cli"),
        ),
        (),
    ),
    "lean/costs/records.py": (
        ("lean.bench.record", "lean.bench.store", "lean.bench.sums", "lean.errors"),
        (),
    ),
    "lean/costs/soak.py": (("lean.soak", "lean.contracts", "lean.errors"), ()),
    "lean/costs/paced.py": (
        ("lean.bench.prompt", "lean.cli", "lean.leanserve.listener"),
        ("starlette", "uvicorn", "tokenizers"),
    ),
    "lean/costs/speed.py": (("lean.leanpack", "lean.leanserve"), ("torch", "transformers")),
    "lean/strict_json.py": ((), ()),
    "lean/bench/plot.py": (("lean",), ("matplotlib", "numpy")),
    "lean/bench/baseline_plot.py": (("lean.bench", "lean.markdown"), ("matplotlib",)),
    "lean/baseline": (
        (
            "lean.child",
            *("lean.baseline", "lean.bench.dialect", "lean.bench.served", "lean.leanpack", "lean.files"),
            *("lean.contracts", "lean.errors", "lean.cli", "lean.host_facts", "lean.host_venv"),
        ),
        ("httpx",),
    ),
    "lean/baseline/systems.py": (("lean.errors",), ()),
    # It runs in the environment of llama.cpp.
    "lean/baseline/gguf_file.py": (
        ("lean.leanpack.checkpoint", "lean.files.staging", "lean.errors", "lean.cli"),
        ("gguf", "numpy"),
    ),
    "lean/bench/figures.py": (("lean",), ("matplotlib", "numpy")),
    "lean/gaps": (
        (
            *("lean.gaps", "lean.bench.results", "lean.bench.run_row", "lean.contracts", "lean.errors"),
            "lean.cli",
            *("lean.kernel_sizes", "lean.toolchain", "kernels.qwen3", "kernels.tiles"),
        ),
        (),
    ),
    "lean/soak": (
        (
            *("lean.soak", "lean.bench", "lean.contracts", "lean.leanpack", "lean.files", "lean.bearer"),
            "lean.child",
            *("lean.cli", "lean.errors", "lean.host_facts", "lean.jobs.process", "lean.markdown"),
            "lean.strict_json",
        ),
        ("httpx", "numpy", "tokenizers"),
    ),
    "lean/soak/plots.py": (("lean.soak", "lean.contracts"), ("matplotlib", "numpy")),
    # A process of its own, before an engine of anybody's.
    "lean/soak/control.py": (
        ("lean.soak.proxy", "lean.http_server", "lean.files", "lean.cli", "lean.errors"),
        ("uvicorn",),
    ),
    "lean/soak/proxy.py": ((), ("httpx", "starlette")),
    "lean/ledger.py": (("lean.contracts", "lean.errors", "lean.strict_json"), ()),
    "lean/bench/record.py": (
        ("lean.bench", "lean.strict_json", "lean.contracts", "lean.errors", "lean.in_process"),
        (),
    ),
    "lean/in_process.py": (("lean.contracts",), ()),
    "lean/demo": (("lean.demo",), ("torch", "numpy", "tokenizers", "safetensors", "matplotlib")),
    "lean/__init__.py": ((), ()),
    "kernels": (("kernels",), ("numpy",)),
    "kernels/case.py": (("kernels",), ("torch",)),
    "kernels/aot.py": (("kernels",), ("cuda.tile",)),
    "kernels/products.py": (("kernels",), ("cuda.tile",)),
    "kernels/encodings/case.py": (("kernels",), ("torch",)),
    "kernels/encodings/tiles.py": (("kernels",), ("cuda.tile",)),
    "kernels/signature.py": (("kernels",), ("cuda.tile",)),
    "kernels/gate_probes/tiles.py": (("kernels",), ("cuda.tile",)),
    "kernels/gate_probes/compile.py": (("kernels",), ("cuda.tile",)),
    "kernels/driver.py": (("kernels",), ("numpy", "cuda.bindings")),
}
ANYWHERE_IN_AN_OPERATION = {
    "reference.py": ("torch",),
    "kernel.py": ("cuda.tile",),
    "cases.py": ("torch", "numpy"),
}


def sources() -> list[Path]:
    found = [ROOT / "tasks.py"]
    for folder in ("remote", "lean", "kernels"):
        found += sorted((ROOT / folder).rglob("*.py"))
    return [path for path in found if "__pycache__" not in path.parts]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)


def violations(path: Path) -> list[str]:
    relative = path.relative_to(ROOT).as_posix()
    key = max((k for k in LAW if relative == k or relative.startswith(k + "/")), key=len)
    ours, libraries = LAW[key]
    if key == "kernels":
        libraries += ANYWHERE_IN_AN_OPERATION.get(path.name, ())
    found = []
    for line, name in imports(path):
        top = name.split(".")[0]
        if top in STANDARD:
            continue
        if not within(name, ours if top in OURS else libraries):
            found.append(f"{relative}:{line} imports {name}, which the law of {key!r} does not allow")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_file_imports_downward_only(path: Path) -> None:
    assert violations(path) == []


def test_the_law_catches_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    bad = tmp_path / "remote" / "x.py"
    bad.parent.mkdir()
    bad.write_text("import torch\nfrom lean.leanserve import engine\nfrom lean.errors import LeanError\n")
    assert [line.split(" ")[0] for line in violations(bad)] == [
        "remote/x.py:1",
        "remote/x.py:2",
        "remote/x.py:3",
    ]


def loaded(modules: list[str], suspects: set[str]) -> list[str]:
    """Which of `suspects` a fresh interpreter has loaded after importing `modules`."""
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {modules!r}]; "
        f"print(*sorted({suspects!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_listing_the_tasks_loads_neither_torch_nor_fabric() -> None:
    heavy = {
        "torch",
        "fabric",
        "paramiko",
        "asyncssh",
        "numpy",
        "httpx",
        "matplotlib",
        "starlette",
        "uvicorn",
    }
    assert loaded(["tasks"], heavy) == []


def test_the_laptops_side_runs_without_what_only_the_host_needs() -> None:
    modules = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in sources()]
    ours = [name for name in modules if name.startswith("remote.") and not name.endswith("__init__")]
    page = [name for name in ours if name.startswith("remote.ui.")]
    rest = [name for name in ours if name not in page]
    assert loaded(rest, {"torch", "numpy", "httpx", "safetensors", "starlette", "tokenizers"}) == []
    assert page and loaded(page, {"torch", "numpy", "safetensors", "tokenizers", "fabric"}) == []


def test_no_source_file_reaches_six_hundred_lines() -> None:
    long = [str(path) for path in sources() if len(path.read_text().splitlines()) >= 600]
    assert long == []
