"""What this machine is, as one JSON document.

Standard library only and self-contained: `remote.doctor` pipes this very file into a host's `python3 -`
before anything was synced, so it must run there on Python 3.9. Results publish these facts: no address, no
user name, the host's name only as a hash, paths below the home directory as `~/…`. A fact that cannot be had
is null.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import time
from typing import Any

SCHEMA = "host_facts/v1"
COMMAND_TIMEOUT_S = 20.0
GPU_FIELDS = ("name", "driver_version", "compute_cap", "memory.total")

# A toolkit that these name is taken by the compiler instead of its own parts, and an older one breaks it.
TOOLKIT_VARIABLES = ("CUDA_HOME", "CUDA_PATH")
COMPILER_RELEASE = (13, 4)

PACKAGES = (
    "cuda-bindings",
    "cuda-tile",
    "httpx",
    "kernels",
    "leanstack",
    "numpy",
    "nvidia-cuda-cuobjdump",
    "nvidia-cuda-nvdisasm",
    "nvidia-cuda-tileiras",
    "safetensors",
    "starlette",
    "tokenizers",
    "torch",
    "transformers",
    "uvicorn",
)


def host_id() -> str:
    """This machine's name, as a hash."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12]


def host_facts(root: str = "~") -> dict[str, Any]:
    """All facts. Sizes are bytes, times seconds; `disk` is that of the nearest directory above `root`."""
    gpus, gpu_error = ask_nvidia_smi(GPU_FIELDS)
    return {
        "schema": SCHEMA,
        "host": host_id(),
        "system": {
            "os": _os_name(),
            "kernel": platform.release(),
            "arch": platform.machine(),
            "boot_id": _read("/proc/sys/kernel/random/boot_id"),
        },
        "clock": {"wall": time.time(), "monotonic": time.monotonic()},
        "cpu": {"model": _cpu_model(), "count": os.cpu_count(), "usable": _usable_cpus()},
        "memory": _memory(),
        "disk": _disk(root),
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "gpus": parse_gpus(gpus),
        "gpu_error": gpu_error,
        "toolkit": {name: _toolkit(os.environ.get(name)) for name in TOOLKIT_VARIABLES},
        "tools": _tools(),
        "linger": _linger(),
        "foreign_kernels": _foreign_kernels(),
        "packages": {name: package_version(name) for name in PACKAGES},
    }


def parse_meminfo(text: str) -> dict[str, int]:
    """`/proc/meminfo` (proc(5)) in bytes. On unified memory this, not the GPU's figure, says what is free."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in found}


def ask_nvidia_smi(fields: tuple[str, ...]) -> tuple[str, str | None]:
    """What `nvidia-smi` answers for `--query-gpu` fields (see `csv_rows`), and why it did not.

    No answer and no reason where there is no such program.
    """
    if shutil.which("nvidia-smi") is None:
        return "", None
    query = f"--query-gpu={','.join(fields)}"
    code, out, err = _run(["nvidia-smi", query, "--format=csv,noheader,nounits"])
    if code == 0:
        return out, None
    lines = (err.strip() or out.strip()).splitlines()
    return "", lines[-1] if lines else f"nvidia-smi exited with {code}"


def csv_rows(text: str, fields: tuple[str, ...]) -> list[dict[str, str]]:
    """The GPUs in `nvidia-smi --format=csv,noheader,nounits`, by field; lines of another form are none."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]
    return [{name: row[i] for i, name in enumerate(fields)} for row in rows if len(row) == len(fields)]


def parse_gpus(text: str) -> list[dict[str, Any]]:
    """The facts of each GPU from the answer to `GPU_FIELDS`.

    A chip with unified memory (GB10) reports its memory as `[N/A]` or `Not Supported`: null, and
    `unified_memory` true.
    """
    gpus = []
    for row in csv_rows(text, GPU_FIELDS):
        capability, memory = row["compute_cap"], row["memory.total"]
        gpus.append(
            {
                "name": row["name"],
                "driver": row["driver_version"],
                "compute_capability": capability if re.fullmatch(r"\d+\.\d+", capability) else None,
                "memory": int(memory) << 20 if memory.isdigit() else None,
                "unified_memory": not memory.isdigit(),
            }
        )
    return gpus


def toolkit_version(folder: str) -> str | None:
    """What the CUDA toolkit in `folder` says it is: its version.json, or else its ptxas."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(_read(os.path.join(folder, "version.json")) or "")["cuda"]["version"])
    shown = _run([os.path.join(folder, "bin", "ptxas"), "--version"])[1]
    found = re.search(r"release (\d+\.\d+)", shown)
    return found.group(1) if found else None


def parse_rsync(text: str) -> dict[str, str] | None:
    """Flavour and version from `rsync --version`: macOS ships openrsync, whose flags differ."""
    first = text.splitlines()[0] if text.strip() else ""
    flavour = "openrsync" if "openrsync" in text else "rsync"
    version = re.search(r"version (\d[\w.]*)", first)
    return {"flavour": flavour, "version": version.group(1)} if version else None


def package_version(distribution: str) -> str | None:
    """Its version in this environment, None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _os_name() -> str:
    release = _read("/etc/os-release") or ""
    pretty = re.search(r'^PRETTY_NAME="?([^"\n]*)', release, re.MULTILINE)
    return pretty.group(1) if pretty else f"{platform.system()} {platform.release()}"


def _cpu_model() -> str | None:
    # /proc/cpuinfo names no model on Arm; lscpu does, one line per kind of core
    out = _run(["lscpu"], {**os.environ, "LC_ALL": "C"})[1]
    models = re.findall(r"^\s*Model name:\s*(.+)$", out, re.MULTILINE)
    return " + ".join(dict.fromkeys(model.strip() for model in models)) or platform.processor() or None


def _usable_cpus() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory() -> dict[str, int | None]:
    info = parse_meminfo(_read("/proc/meminfo") or "")
    total = info.get("MemTotal")
    if total is None and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"total": total, "available": info.get("MemAvailable"), "swap_free": info.get("SwapFree")}


def _disk(root: str) -> dict[str, int]:
    path = os.path.abspath(os.path.expanduser(root))
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    usage = shutil.disk_usage(path)
    return {"total": usage.total, "free": usage.free}


def _toolkit(path: str | None) -> dict[str, str | None] | None:
    if not path:
        return None
    home = os.path.expanduser("~")
    shown = "~" + path[len(home) :] if path == home or path.startswith(home + os.sep) else path
    return {"path": shown, "version": toolkit_version(path)}


def _tools() -> dict[str, Any]:
    git = re.search(r"\d+(\.\d+)+", _run(["git", "--version"])[1])
    return {
        "rsync": parse_rsync(_run(["rsync", "--version"])[1]),
        "git": git.group(0) if git else None,
        "systemd_run": shutil.which("systemd-run") is not None,
    }


def _linger() -> bool | None:
    """Whether user services outlive the last login (loginctl(1)); null where there is no logind."""
    code, out, _ = _run(["loginctl", "show-user", str(os.getuid()), "--property=Linger", "--value"])
    return out.strip() == "yes" if code == 0 else None


def _foreign_kernels() -> str | None:
    """Version of an installed `kernels` package that is not ours, such as Hugging Face's."""
    for folder in (*site.getsitepackages(), site.getusersitepackages()):
        package = os.path.join(folder, "kernels")
        if os.path.isdir(package) and not os.path.isfile(os.path.join(package, "aot.py")):
            return package_version("kernels") or "unknown"
    return None


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _run(argv: list[str], env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code and outputs; 127 for a program that is not there, 124 for one that does not answer."""
    try:
        done = subprocess.run(
            argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=COMMAND_TIMEOUT_S, env=env
        )
    except OSError:
        return 127, "", ""
    except subprocess.TimeoutExpired:
        return 124, "", f"{argv[0]} did not answer within {COMMAND_TIMEOUT_S:g} s"
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


def main(argv: list[str]) -> int:
    """Print the document."""
    parser = argparse.ArgumentParser(
        prog="python -m lean.host_facts", description="what this machine is, as JSON"
    )
    parser.add_argument("--root", default="~", help="directory whose disk counts; need not exist yet")
    options = parser.parse_args(argv)
    print(json.dumps(host_facts(options.root), indent=2, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
