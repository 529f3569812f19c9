"""What results depend on, by hash: a kernel's source, its cases, the modules of `kernels` they import.

And whether what another machine compiled is still of these sources.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from lean.errors import IntegrityError

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ("kernels/qwen3/__init__.py", "kernels/signature.py", "kernels/aot.py", "kernels/driver.py")

# What decides how kernels are timed and what counts as right.
TIMING = (
    *(f"chip/{name}" for name in ("machine", "memory", "trial", "judge", "pace")),
    *(f"speed/{name}" for name in ("bench", "rotation", "operations", "peer", "limits", "steadiness")),
    *(f"tune/{name}" for name in ("candidate", "job", "choice", "search")),
)


def timing_sources(root: Path = ROOT) -> dict[str, str]:
    """SHA-256 by path of the modules that time and judge."""
    return hashed((root / f"lean/toolchain/{name}.py" for name in TIMING), root)


def imported(root: Path, start: Iterable[Path]) -> tuple[Path, ...]:
    """The files of `start` and every file below `root/kernels` that they import, directly or not, sorted."""
    found: set[Path] = set()
    waiting = [path for path in start if path.is_file()]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imports(root, path)
    return tuple(sorted(found))


def hashed_sources(target: str, operations: Iterable[str] | None = None, root: Path = ROOT) -> dict[str, str]:
    """SHA-256 by path: the operations' kernels and cases (all by default), their imports, the tuning."""
    names = operations or (path.parent.name for path in root.glob("kernels/*/kernel.py"))
    start = [root / "kernels" / name / file for name in names for file in ("kernel.py", "cases.py")]
    start += [root / path for path in (*PROGRAM, f"kernels/tuning/{target}.json")]
    return hashed(imported(root, start), root)


def hashed(paths: Iterable[Path], root: Path = ROOT) -> dict[str, str]:
    """SHA-256 of these files, by their path below `root`."""
    return {path.relative_to(root).as_posix(): sha256_of(path.read_bytes()) for path in paths}


def sha256_of(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def check_sources(folder: Path, here: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    """Raise `IntegrityError` unless what a folder holds was compiled from the sources that are here."""
    if stale := sorted(path for path in {**here, **theirs} if here.get(path) != theirs.get(path)):
        raise IntegrityError(
            f"{folder}: compiled from another {', '.join(stale)}; compile from this checkout"
        )


def read_checked(path: Path, sha256: str) -> bytes:
    """A file that must be what was compiled. Errors: `IntegrityError`."""
    data = path.read_bytes() if path.is_file() else b""
    if sha256_of(data) != sha256:
        raise IntegrityError(f"{path}: not the file that was compiled; bring the folder over again")
    return data


def _imports(root: Path, path: Path) -> list[Path]:
    if path.suffix != ".py":
        return []
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = [module.replace(".", "/") for module in modules if module.startswith("kernels.")]
    files = (root / name for module in ours for name in (f"{module}.py", f"{module}/__init__.py"))
    return [file for file in files if file.is_file()]
