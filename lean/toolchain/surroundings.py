"""What around the toolchain can break it: an older CUDA toolkit, and a foreign `kernels` package."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import kernels
from lean.errors import PreflightError
from lean.host_facts import COMPILER_RELEASE, TOOLKIT_VARIABLES, toolkit_version
from lean.toolchain.sources import ROOT

SILENT_FAILURE = "failed to compile Tile IR program"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolkitVariable:
    """One of CUDA_HOME and CUDA_PATH as the environment has it; the path itself is not kept.

    `release` is that toolkit's, such as "13.0"; None when it does not say.
    """

    name: str
    release: str | None
    older: bool

    def __str__(self) -> str:
        return f"{self.name} points at a CUDA toolkit of release {self.release or 'unknown'}"


def toolkit_variables(environment: Mapping[str, str]) -> tuple[ToolkitVariable, ...]:
    """The variables that are set, each with the release of the toolkit it names."""
    found = []
    for name in TOOLKIT_VARIABLES:
        if environment.get(name):
            numbers = re.match(r"(\d+)\.(\d+)", toolkit_version(environment[name]) or "")
            older = numbers is not None and tuple(map(int, numbers.groups())) < COMPILER_RELEASE
            found.append(ToolkitVariable(name=name, release=numbers and numbers[0], older=older))
    return tuple(found)


def explain_compile_failure(message: str, environment: Mapping[str, str]) -> str:
    """The message of a failed compile, with its cause and the fix as far as `environment` tells them."""
    if SILENT_FAILURE not in message:
        return message
    release = ".".join(map(str, COMPILER_RELEASE))
    for variable in toolkit_variables(environment):
        if variable.older or variable.release is None:
            return (
                f"{message}. Cause: {variable}; tileiras {release} took that toolkit's ptxas and libnvvm "
                f"instead of its own. Fix: `unset {' '.join(TOOLKIT_VARIABLES)}`, or point them at release "
                f"{release} or later"
            )
    return (
        f"{message}. No CUDA_HOME or CUDA_PATH was in the way, so its own ptxas or libnvvm is at fault. Fix: "
        "reinstall nvidia-cuda-tileiras, nvidia-cuda-nvcc and nvidia-nvvm of one release, and look at the "
        "log for the rest"
    )


def check_kernels_package() -> None:
    """Errors: `PreflightError` when Python imports another package `kernels` than the one beside this."""
    if [Path(place).resolve() for place in kernels.__path__] != [ROOT / "kernels"]:
        owners = foreign_kernels()
        raise PreflightError(
            "the package `kernels` that Python imports is not this project's but a foreign "
            f"one{' of the distribution ' + ', '.join(owners) if owners else ''}; put the release first on "
            "PYTHONPATH, or uninstall the other one from this environment"
        )


def foreign_kernels() -> tuple[str, ...]:
    """Other distributions here that bring a package `kernels`; ours wins only while it comes first."""
    owners = importlib.metadata.packages_distributions().get("kernels", ())
    return tuple(sorted(set(owners) - {"leanstack"}))
