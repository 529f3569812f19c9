"""The virtual environment of a release on the host.

`python -m lean.host_venv check|build`. Standard library only.

One environment serves every release with the same constraints, host requirements and Python: it is named by
their hash. `bootstrap.json` is written into it last; without it the folder is a leftover and is built anew.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lean.cli import ProgramParser, run_program
from lean.errors import LeanError, PreflightError
from lean.files.staging import replace_file

MARK = "bootstrap.json"
SCHEMA = "bootstrap/v1"
FOLDERS = ("releases", "venvs", "models", "packs", "jobs", "results", "logs", "tmp")
OLDEST = (3, 11)
# What serving a pack of compiled kernels, and measuring it, do without: the compiler, the hubs' clients, the
# reference runner, and the /metrics page. A verb that needs one says so itself.
DISPENSABLE = frozenset(
    {
        *("cuda-tile", "nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm", "nvidia-cuda-tileiras"),
        *("huggingface-hub", "modelscope-hub", "torch", "prometheus-client"),
    }
)


@dataclass(frozen=True)
class Wanted:
    """What the environment of a release must hold. `key` names it."""

    venv: Path
    key: str
    python: str
    requirements: tuple[str, ...]
    constraints: Path


def wanted(root: Path, release: Path) -> Wanted:
    """Read the release.

    Errors: `PreflightError` when this Python is too old, or the release has no host extra.
    """
    if sys.version_info < OLDEST:
        raise PreflightError(
            f"{sys.executable} is Python {platform.python_version()}; 3.11 or later is needed, "
            "install one and name it as `python` in hosts.local.yaml"
        )
    import tomllib

    constraints, project = release / "constraints.txt", release / "pyproject.toml"
    try:
        extras = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        requirements = tuple(sorted(extras["host"]))
        pinned = constraints.read_bytes()
    except (OSError, KeyError, ValueError) as error:
        raise PreflightError(
            f"{release}: no constraints.txt, or no `host` extra in pyproject.toml ({error})"
        ) from None
    python = f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}"
    parts = [hashlib.sha256(pinned).hexdigest(), *requirements, python]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return Wanted(root / "venvs" / key, key, python, requirements, constraints)


def check(root: Path, release: Path) -> dict[str, Any]:
    """Make the layout's folders (0700) and say whether the release's environment is whole."""
    _make_folders(root, FOLDERS)
    found = wanted(root, release)
    return _document(found, ready=_marked(found))


def _make_folders(root: Path, names: Iterable[str]) -> None:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in names:
        (root / name).mkdir(mode=0o700, exist_ok=True)


def build(root: Path, release: Path, wheels: Path | None = None) -> dict[str, Any]:
    """Build the release's environment unless it is whole. `wheels`: take packages from that folder, no index.

    Errors: `PreflightError` when Python cannot make environments here, `LeanError` when pip fails; nothing
    is left.
    """
    found = wanted(root, release)
    if _marked(found):
        return _document(found, ready=True)
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise PreflightError(
            f"{sys.executable} cannot make virtual environments; "
            f"run `sudo apt install python{version}-venv` on the host"
        )
    started = time.monotonic()
    if found.venv.exists():
        shutil.rmtree(found.venv)  # somebody was stopped half-way
    try:
        _run([sys.executable, "-m", "venv", str(found.venv)], "making the environment")
        _install(found, wheels)
        _mark(found, time.monotonic() - started)
    except BaseException:
        shutil.rmtree(found.venv, ignore_errors=True)
        raise
    return _document(found, ready=True)


def missing_modules(python: str, root: Path, release: Path) -> dict[str, Any]:
    """Which distributions of the host extra the environment of `python` lacks, by their own metadata.

    `missing` are those that nothing can do without, `lacks` the others. Makes the layout's folders too, but
    none for environments.
    """
    found = wanted(root, release)
    names = [_distribution(requirement) for requirement in found.requirements]
    ask = (
        "import importlib.metadata as m, json, sys\n"
        "have = {(d.metadata['Name'] or '').lower().replace('_', '-') for d in m.distributions()}\n"
        "print(json.dumps([n for n in sys.argv[1:] if n.lower().replace('_', '-') not in have]))"
    )
    try:
        answer = subprocess.run(
            [python, "-I", "-c", ask, *names], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise PreflightError(f"{python} does not run ({error}); correct `venv` in hosts.local.yaml") from None
    absent = json.loads(answer.stdout)
    _make_folders(root, (name for name in FOLDERS if name != "venvs"))
    return {
        "python": python,
        "missing": [name for name in absent if name not in DISPENSABLE],
        "lacks": [name for name in absent if name in DISPENSABLE],
    }


def _distribution(requirement: str) -> str:
    """The name at the head of a requirement (PEP 508)."""
    for end, character in enumerate(requirement):
        if not (character.isalnum() or character in "._-"):
            return requirement[:end]
    return requirement


def _install(found: Wanted, wheels: Path | None) -> None:
    python = str(found.venv / "bin" / "python")
    argv = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
    ]
    if wheels is not None:
        argv += ["--no-index", "--find-links", str(wheels)]
    argv += ["--constraint", str(found.constraints)]
    if found.requirements:
        names = ", ".join(found.requirements)
        print(f"installing {names} and what they need; this takes minutes", file=sys.stderr, flush=True)
        _run([*argv, "--", *found.requirements], "installing")


def _run(argv: list[str], what: str) -> None:
    """Run a child whose words all go to standard error, the job's log."""
    code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno()).returncode
    if code:
        raise LeanError(
            f"{what} failed: `{argv[0]} {' '.join(argv[1:3])}` ended with {code}; the log has its words"
        )


def _mark(found: Wanted, seconds: float) -> None:
    body = {
        "schema": SCHEMA,
        "key": found.key,
        "python": found.python,
        "requirements": found.requirements,
        "constraints_sha256": hashlib.sha256(found.constraints.read_bytes()).hexdigest(),
        "built": datetime.now(timezone.utc).isoformat(timespec="seconds"),  # noqa: UP017  runs before 3.11 is sure
        "seconds": round(seconds, 1),
    }
    replace_file(found.venv / MARK, json.dumps(body, indent=1))


def _marked(found: Wanted) -> bool:
    return (found.venv / MARK).is_file() and (found.venv / "bin" / "python").exists()


def platform_facts() -> dict[str, Any]:
    """What decides which wheels this Python takes: version, machine, C library, markers (PEP 508)."""
    return {
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "machine": platform.machine(),
        "glibc": [int(part) for part in platform.libc_ver()[1].split(".")[:2] if part.isdigit()],
        "markers": {
            "implementation_name": sys.implementation.name,
            "implementation_version": platform.python_version(),
            "os_name": os.name,
            "platform_machine": platform.machine(),
            "platform_python_implementation": platform.python_implementation(),
            "platform_release": platform.release(),
            "platform_system": platform.system(),
            "platform_version": platform.version(),
            "python_full_version": platform.python_version(),
            "python_version": f"{sys.version_info[0]}.{sys.version_info[1]}",
            "sys_platform": sys.platform,
        },
    }


def _document(found: Wanted, *, ready: bool) -> dict[str, Any]:
    facts = {name: str(value) for name, value in asdict(found).items() if name in ("venv", "key")}
    return facts | {
        "ready": ready,
        "python": str(found.venv / "bin" / "python"),
        "version": found.python,
        "platform": platform_facts(),
    }


def _parser() -> ProgramParser:
    parser = ProgramParser(prog="python -m lean.host_venv", description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    checking, building, missing = (
        verbs.add_parser(name, allow_abbrev=False) for name in ("check", "build", "missing")
    )
    for verb in (checking, building, missing):
        verb.add_argument("--root", type=Path, required=True)
        verb.add_argument("--release", type=Path, required=True)
    building.add_argument("--wheels", type=Path, help="take packages from this folder, use no index")
    missing.add_argument("--python", required=True, help="the environment's interpreter")
    checking.set_defaults(run=lambda options: check(options.root, options.release))
    building.set_defaults(run=lambda options: build(options.root, options.release, options.wheels))
    missing.set_defaults(
        run=lambda options: missing_modules(os.path.expanduser(options.python), options.root, options.release)
    )
    return parser


def main(argv: list[str]) -> dict[str, Any]:
    """Run one verb; the result is what `run_program` prints."""
    options = _parser().parse_args(argv)
    return dict(options.run(options))


if __name__ == "__main__":
    sys.exit(run_program(main))
