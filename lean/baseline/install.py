"""A system's own environment on the host, never ours: `venvs/baseline-<system>-<key>`.

The key hashes the pins and this Python, so another pin makes another environment. What was installed is
written into it last, as `baseline.json`; a folder without that is a leftover and is built anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.baseline.systems import Source, System
from lean.errors import IntegrityError, LeanError, PreflightError
from lean.files.staging import replace_file
from lean.host_facts import host_facts

MARK = "baseline.json"
SCHEMA = "baseline-environment/v1"
_DOWNLOAD_S = 60.0  # without a byte

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A system ready to serve. `packages`: `name version` of all that lies in its environment."""

    system: str
    version: str
    venv: Path
    packages: tuple[str, ...]
    built: bool


def install(system: System, venvs: Path, say: Say, *, bring: Path | None = None) -> Installed:
    """The environment of a system below `venvs`, made unless it is there and whole.

    `bring`: a folder with every package and source archive, for a host without internet. Errors:
    `PreflightError` when something cannot be had, in the words of what said so; `IntegrityError` for a source
    archive that is not the pinned one. Nothing half-made counts.
    """
    venv = environment_of(system, venvs)
    if (found := read_installed(system, venv)) is not None:
        return found
    if venv.exists():
        shutil.rmtree(venv)
    started = time.monotonic()
    try:
        _run([sys.executable, "-m", "venv", str(venv)], f"making {system.name}'s environment")
        say(f"{system.name}: installing {', '.join(system.requirements)}; this takes minutes")
        argv = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input"]
        argv += ["--disable-pip-version-check", "--progress-bar", "off"]
        argv += ["--no-index", "--find-links", str(bring)] if bring is not None else []
        _run([*argv, "--", *system.requirements], f"installing {system.name}")
        if system.source is not None:
            _build(system.source, venv, say, bring)
        _mark(system, venv, time.monotonic() - started)
    except BaseException:
        shutil.rmtree(venv, ignore_errors=True)
        raise
    found = read_installed(system, venv)
    assert found is not None
    return Installed(
        system=found.system, version=found.version, venv=venv, packages=found.packages, built=True
    )


def environment_of(system: System, venvs: Path) -> Path:
    """Where a system's environment lies, made or not."""
    return venvs / f"baseline-{system.name}-{_key(system)}"


def read_installed(system: System, venv: Path) -> Installed | None:
    """The environment at `venv` if it is whole, else None."""
    try:
        mark = json.loads((venv / MARK).read_text(encoding="utf-8"))
        if mark["schema"] != SCHEMA or mark["system"] != system.name:
            return None
        packages = tuple(str(line) for line in mark["packages"])
        return Installed(
            system=system.name, version=str(mark["version"]), venv=venv, packages=packages, built=False
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _key(system: System) -> str:
    python = f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}"
    source = (system.source.sha256, f"cuda {_has_gpu()}") if system.source else ()
    parts = [*system.requirements, python, *source]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _mark(system: System, venv: Path, seconds: float) -> None:
    listed = subprocess.run(
        [str(venv / "bin" / "python"), "-m", "pip", "list", "--format", "json"],
        capture_output=True,
        check=True,
        timeout=120,
    )
    packages = [f"{entry['name']} {entry['version']}" for entry in json.loads(listed.stdout)]
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "system": system.name,
        "version": system.version,
        "requirements": system.requirements,
        "source_sha256": system.source.sha256 if system.source else None,
        "packages": packages,
        "seconds": round(seconds, 1),
    }
    replace_file(venv / MARK, json.dumps(body, indent=1) + "\n")


def _build(source: Source, venv: Path, say: Say, bring: Path | None) -> None:
    """llama.cpp's server from its sources, for this machine: CUDA where its compiler is, else the CPU."""
    if shutil.which("c++") is None:
        raise PreflightError("no C++ compiler (c++) here to build llama.cpp; run `sudo apt install g++`")
    with tempfile.TemporaryDirectory(dir=venv) as scratch:
        archive = Path(scratch) / "source.tar.gz"
        _obtain(source, archive, bring, say)
        with tarfile.open(archive) as opened:
            opened.extractall(scratch, filter="data")
        sources, build = Path(scratch) / source.folder, Path(scratch) / "build"
        cuda = _has_gpu()
        if cuda and shutil.which("nvcc") is None:
            raise PreflightError(
                "this host has a GPU and no nvcc to build llama.cpp for it; put CUDA's bin on PATH, or "
                "leave the GPU out with an empty CUDA_VISIBLE_DEVICES"
            )
        say(f"building llama-server {'with CUDA' if cuda else 'for the CPU'}; this takes minutes")
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "BUILD_SHARED_LIBS": "OFF",
            "GGML_NATIVE": "ON",
            "GGML_CUDA": "ON" if cuda else "OFF",
            "LLAMA_BUILD_TESTS": "OFF",
            "LLAMA_BUILD_EXAMPLES": "OFF",
            "LLAMA_BUILD_APP": "OFF",
            "LLAMA_USE_PREBUILT_UI": "OFF",
            "LLAMA_OPENSSL": "OFF",
        }
        cmake, path = str(venv / "bin" / "cmake"), f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
        flags = [f"-D{name}={value}" for name, value in options.items()]
        _run(
            [cmake, "-S", str(sources), "-B", str(build), "-G", "Ninja", *flags],
            "configuring llama.cpp",
            path,
        )
        _run([cmake, "--build", str(build), "--target", "llama-server"], "building llama-server", path)
        shutil.copy2(build / "bin" / "llama-server", venv / "bin" / "llama-server")


def _has_gpu() -> bool:
    """Whether the server is to run on a GPU here."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and bool(host_facts()["gpus"])


def _obtain(source: Source, archive: Path, bring: Path | None, say: Say) -> None:
    """The pinned archive. Errors: `PreflightError` where there is none, `IntegrityError` for another."""
    name = source.url.rpartition("/")[2]
    try:
        if bring is not None:
            shutil.copyfile(bring / name, archive)
        else:
            say(f"downloading {name}")
            with urllib.request.urlopen(source.url, timeout=_DOWNLOAD_S) as answer, archive.open("wb") as out:
                shutil.copyfileobj(answer, out)
    except OSError as error:
        raise PreflightError(f"{name} cannot be had: {error}; bring it along with --bring") from None
    with archive.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != source.sha256:
        raise IntegrityError(f"{name}: sha256 is {found}, pinned is {source.sha256}; nothing was built of it")


def _run(argv: list[str], what: str, path: str | None = None) -> None:
    """Run a child whose words all go to standard error, the job's log. Errors: `PreflightError`."""
    settings = os.environ | ({"PATH": path} if path is not None else {})
    try:
        code = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), env=settings
        ).returncode
    except OSError as error:
        raise LeanError(f"{what} failed: {argv[0]}: {error}") from None
    if code:
        raise PreflightError(
            f"{what} failed: `{Path(argv[0]).name} {' '.join(argv[1:4])}` ended with {code}; "
            "the log has its words"
        )
