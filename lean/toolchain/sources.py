"""What a kernel's proof depends on: its source, its cases, and the modules of `kernels` they import."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

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
    paths = (f"lean/toolchain/{name}.py" for name in TIMING)
    return {path: hashlib.sha256((root / path).read_bytes()).hexdigest() for path in paths}


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
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in imported(root, start)
    }


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
