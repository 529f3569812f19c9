"""The compiler's tools: where they are, what they compile for, their versions, and when they said no."""

from __future__ import annotations

import importlib.metadata

from kernels import aot
from kernels.build import tool_versions
from lean.errors import PreflightError


def find_tools() -> aot.Tools:
    """The chain's tools. Errors: `PreflightError` naming the missing one and the package that brings it."""
    try:
        return aot.find_tools()
    except aot.ToolMissing as error:
        raise PreflightError(str(error)) from None


def supported_targets(tools: aot.Tools) -> tuple[str, ...]:
    """What tileiras compiles for. Errors: `PreflightError` when it cannot even say that."""
    try:
        targets: tuple[str, ...] = aot.supported_targets(tools)
    except aot.AotError as error:
        raise PreflightError(f"tileiras does not run: {error}; reinstall nvidia-cuda-tileiras") from None
    return targets


def versions(tools: aot.Tools) -> dict[str, str]:
    """Of the front end and of each tool behind it."""
    return {"cuda-tile": importlib.metadata.version("cuda-tile"), **tool_versions(tools)}


def is_refusal(error: aot.AotError) -> bool:
    """Whether a failed build is the tools' answer: the front end's words, or an exit code from 0 on.

    A tool that died of a signal, or ran too long, said nothing of the kernel.
    """
    cause = error.__cause__
    return isinstance(cause, aot.StageFailed) and _answered(cause)


def _answered(cause: aot.StageFailed) -> bool:
    return cause.stage == "bytecode" or (cause.exit_code is not None and cause.exit_code >= 0)
