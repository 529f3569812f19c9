"""Packages for a host without internet: resolved and downloaded here for its platform, not for ours.

pip reads environment markers with the Python that runs it, even for another platform. So it downloads level
by level without dependencies, and what a wheel requires is read here with the host's markers (PEP 508).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lean.errors import PreflightError
from remote.paths import REPOSITORY

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OLDEST_GLIBC, NEWEST_GLIBC = 17, 99  # manylinux_2_17 is manylinux2014, the oldest that wheels are built for


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What decides which wheels a host takes. `python`: 3.12, say; `markers`: PEP 508's, with its values."""

    python: str
    machine: str
    glibc: tuple[int, int]
    markers: dict[str, str]


def read_platform(data: Any) -> Platform:
    """The host's own description. Errors: `PreflightError` for anything that is none, or no glibc."""
    try:
        python, machine, glibc = str(data["python"]), str(data["machine"]), list(data["glibc"])
        markers = {str(name): str(value) for name, value in data["markers"].items()}
    except (KeyError, TypeError, AttributeError):
        raise PreflightError("the host does not say what platform it is; sync this release first") from None
    if len(glibc) != 2 or glibc[0] != 2 or glibc[1] not in range(OLDEST_GLIBC, NEWEST_GLIBC + 1):
        raise PreflightError(f"the host's C library is no glibc 2 ({glibc}); name a `venv` of your own")
    if not re.fullmatch(r"3\.\d{1,2}", python) or not re.fullmatch(r"[a-z0-9_]{1,20}", machine):
        raise PreflightError(f"no wheels for Python {python[:20]!r} on {machine[:20]!r}; name a `venv`")
    return Platform(python=python, machine=machine, glibc=(2, glibc[1]), markers=markers)


def download_wheels(
    platform: Platform, folder: Path, *, on_line: Callable[[str], None], repo: Path = REPOSITORY
) -> int:
    """Fill `folder` with every wheel that the host extra needs there; how many there are.

    Errors: `PreflightError` when pip finds no wheel of a package for that platform, in pip's words, or
    without pip or packaging here.
    """
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name
    except ImportError:
        raise not_installed_here("resolving wheels", "packaging") from None
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(text) for text in project["optional-dependencies"]["host"]]
    known: dict[str, set[str]] = {}
    wheels: dict[str, Path] = {}
    while fresh := [r for r in wanted if not {"", *r.extras} <= known.get(canonicalize_name(r.name), set())]:
        missing = [r for r in fresh if canonicalize_name(r.name) not in wheels]
        if missing:
            _download(platform, folder, missing, on_line=on_line, repo=repo)
        for requirement in fresh:
            name = canonicalize_name(requirement.name)
            known.setdefault(name, set()).update({"", *requirement.extras})
            wheels[name] = _wheel_of(folder, name)
        wanted = [
            found
            for requirement in fresh
            for found in _requires(wheels[canonicalize_name(requirement.name)], requirement, platform)
        ]
    for path in set(folder.iterdir()) - set(wheels.values()):
        path.unlink()  # of an earlier set of pins
    return len(wheels)


def not_installed_here(work: str, *packages: str) -> PreflightError:
    """What to say when some of the relay extra's packages are missing on this machine."""
    return PreflightError(
        f"{work} needs {', '.join(packages)} on this machine; run: pip install -c constraints.txt -e .[relay]"
    )


def platform_tags(platform: Platform) -> Iterator[str]:
    """Tags of the wheels such a machine installs, newest first (PEP 600)."""
    for minor in range(platform.glibc[1], OLDEST_GLIBC - 1, -1):
        yield f"manylinux_2_{minor}_{platform.machine}"
    yield f"manylinux2014_{platform.machine}"
    yield f"linux_{platform.machine}"


def _download(
    platform: Platform,
    folder: Path,
    wanted: Iterable[Requirement],
    *,
    on_line: Callable[[str], None],
    repo: Path,
) -> None:
    argv = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--no-deps"]
    argv += ["--progress-bar", "off", "--only-binary", ":all:", "--implementation", "cp"]
    argv += ["--python-version", platform.python, "--dest", str(folder)]
    for tag in platform_tags(platform):
        argv += ["--platform", tag]
    argv += ["--constraint", str(repo / "constraints.txt"), "--", *(f"{r.name}{r.specifier}" for r in wanted)]
    problem = last = ""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            last = line.strip() or last
            if line.startswith("ERROR:"):
                problem = problem or line.removeprefix("ERROR:").strip()
            on_line(line.rstrip("\n"))
    if child.returncode != 0:
        raise PreflightError(
            f"pip cannot download the host's packages for Python {platform.python} on "
            f"{platform.machine}: {(problem or last)[:300]}"
        )


def _wheel_of(folder: Path, name: str) -> Path:
    """The newest wheel of that name; an older set of pins may have left another."""
    from packaging.utils import parse_wheel_filename

    found = [path for path in folder.glob("*.whl") if parse_wheel_filename(path.name)[0] == name]
    if not found:
        raise PreflightError(f"pip downloaded no wheel of {name}")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def _requires(wheel: Path, asked: Requirement, platform: Platform) -> list[Requirement]:
    """What a wheel needs on the host, with the extras that were asked for."""
    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        metadata = HeaderParser().parsestr(archive.read(name).decode("utf-8", "replace"))
    found = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    return [
        requirement
        for requirement in found
        if requirement.marker is None
        or any(requirement.marker.evaluate({**platform.markers, "extra": e}) for e in ("", *asked.extras))
    ]
