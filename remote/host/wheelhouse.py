"""Packages for a host without internet: resolved and downloaded here for its platform, not for ours."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lean.errors import PreflightError
from remote.paths import REPOSITORY

OLDEST_GLIBC = 17  # manylinux_2_17 is manylinux2014, the oldest that today's wheels are built for


def download_wheels(
    platform: Mapping[str, Any], folder: Path, *, on_line: Callable[[str], None], repo: Path = REPOSITORY
) -> int:
    """Fill `folder` with every wheel that the host extra needs there; how many there are.

    `platform` is `lean.host_venv`'s: `python` (3.12), `machine` (aarch64), `glibc` ([2, 39]). Errors:
    `PreflightError` when pip finds no wheel of a package for that platform, in pip's words.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = sorted(project["optional-dependencies"]["host"])
    argv = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check"]
    argv += ["--progress-bar", "off", "--only-binary", ":all:", "--implementation", "cp"]
    argv += ["--python-version", str(platform["python"]), "--dest", str(folder)]
    for tag in platform_tags(platform):
        argv += ["--platform", tag]
    argv += ["--constraint", str(repo / "constraints.txt"), "--", *wanted]
    problem = ""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("ERROR:"):
                problem = problem or line.removeprefix("ERROR:").strip()
            on_line(line.rstrip("\n"))
    if child.returncode != 0:
        raise PreflightError(
            f"pip cannot download the host's packages for Python {platform['python']} on "
            f"{platform['machine']}: {problem[:300]}"
        )
    return sum(1 for _ in folder.glob("*.whl"))


def platform_tags(platform: Mapping[str, Any]) -> Iterator[str]:
    """Tags of the wheels such a machine installs, newest first (PEP 600). Errors: `PreflightError`."""
    machine, glibc = platform["machine"], platform["glibc"]
    if not glibc or glibc[0] != 2:
        raise PreflightError(f"the host's C library is no glibc 2 ({glibc}); name a `venv` of your own")
    for minor in range(glibc[1], OLDEST_GLIBC - 1, -1):
        yield f"manylinux_2_{minor}_{machine}"
    yield f"manylinux2014_{machine}"
    yield f"linux_{machine}"
