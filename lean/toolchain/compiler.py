"""The compiler of this machine, if it has one; who runs what another machine compiled imports no compiler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lean.errors import PreflightError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """The tools, as `kernels.aot` has them, their versions, and the chips they compile for."""

    tools: Any
    versions: dict[str, str]
    targets: tuple[str, ...]


def toolchain_for(targets: tuple[str, ...], instead: str) -> Toolchain:
    """What can compile for these chips here.

    `instead`: what to do on a machine without it. Errors: `PreflightError` there; `UsageError` for a chip
    that it does not know.
    """
    try:
        from lean.toolchain.tools import find_tools, supported_targets, versions
    except ModuleNotFoundError as error:
        raise PreflightError(
            f"the Python package {error.name} is missing, so nothing can be compiled here; pip install "
            f"'leanstack[host]', or {instead}"
        ) from None
    tools = find_tools()
    known = supported_targets(tools)
    if unknown := [target for target in targets if target not in known]:
        raise UsageError(f"--target: tileiras does not know {', '.join(unknown)}; known: {', '.join(known)}")
    return Toolchain(tools=tools, versions=versions(tools), targets=known)
