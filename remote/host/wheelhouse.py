"""Packages for a host without internet: resolved and downloaded here for its platform, not for ours.

pip reads environment markers with the Python that runs it, even for another platform. So it downloads level
by level without dependencies, and what a wheel requires is read here with the host's markers (PEP 508). A
package whose wheel a later requirement does not accept is downloaded anew by all of them together.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lean.errors import IntegrityError, PreflightError
from lean.files.exclusive import hold
from remote.paths import REPOSITORY

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from remote.ssh.connection import HostConnection

OLDEST_GLIBC, NEWEST_GLIBC = 17, 99  # manylinux_2_17 is manylinux2014, the oldest that wheels are built for
DOWNLOAD_S = 60.0  # without a byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A file that is no wheel, such as sources that the host builds, by its address and its hash."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """Its file name in the folder."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """What a host needs: `requirements` with all that they require, below `constraints`, and `archives`.

    `otherwise`: what a person does when some of it cannot be downloaded here.
    """

    requirements: tuple[str, ...]
    constraints: Path | None = None
    archives: tuple[Archive, ...] = ()
    otherwise: str = "name a `venv` of your own in hosts.local.yaml"

    def __str__(self) -> str:
        return ", ".join((*self.requirements, *(archive.name for archive in self.archives)))


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


def host_packages(repo: Path = REPOSITORY) -> Packages:
    """What a release of `repo` needs on a host: its host extra, under its constraints."""
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return Packages(
        requirements=tuple(project["optional-dependencies"]["host"]), constraints=repo / "constraints.txt"
    )


def send_packages(
    connection: HostConnection,
    wanted: Packages,
    platform: Platform,
    *,
    here: Path,
    there: str,
    on_line: Callable[[str], None],
) -> str:
    """Download what is `wanted` into the folder `here`, and have it in the folder `there` of the host.

    Both keep what they have. The folder there. Errors: those of `download_packages` and of a push.
    """
    from remote.transfer.copy import push

    with hold(here.with_name(f"{here.name}.lock"), "this wheelhouse"):
        count = download_packages(platform, here, wanted, on_line=on_line)
        done = push(connection, here, there, replace=True)
    on_line(f"{count} packages, {done.size} bytes, in {there}")
    return there


def download_packages(
    platform: Platform, folder: Path, wanted: Packages, *, on_line: Callable[[str], None]
) -> int:
    """Fill `folder` with every wheel and archive that is `wanted` there, and nothing else; how many.

    Errors: `PreflightError` when pip finds no wheel of a package for that platform, in pip's words, when an
    archive cannot be had, or without pip or packaging here; `IntegrityError` for another archive.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = {_archive_of(folder, archive, wanted.otherwise, on_line) for archive in wanted.archives}
    kept |= set(_wheels(platform, folder, wanted, on_line).values())
    for path in set(folder.iterdir()) - kept:
        path.unlink()  # of an earlier set of pins
    return len(kept)


def _wheels(
    platform: Platform, folder: Path, wanted: Packages, on_line: Callable[[str], None]
) -> dict[str, Path]:
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name
    except ImportError:
        raise not_installed_here("resolving wheels", "packaging") from None
    asked: dict[str, list[Requirement]] = {}  # by name, everything that was ever required of it
    read: dict[str, set[str]] = {}  # by name, the extras whose requirements are known
    wheels: dict[str, Path] = {}
    level = [Requirement(text) for text in wanted.requirements]
    while level:
        fresh: dict[str, None] = {}
        unfit = []
        for requirement in level:
            name = canonicalize_name(requirement.name)
            asked.setdefault(name, []).append(requirement)
            if name not in wheels or not _accepts(requirement, wheels[name]):
                unfit.append(name)
                read.pop(name, None)  # another wheel may require something else
            if not {"", *requirement.extras} <= read.get(name, set()):
                fresh[name] = None
        if unfit:
            needed = [requirement for name in dict.fromkeys(unfit) for requirement in asked[name]]
            _download(platform, folder, needed, wanted, on_line)
        level = []
        for key in fresh:
            wheels[key] = _wheel_of(folder, key, asked[key])
            read[key] = {"", *(extra for requirement in asked[key] for extra in requirement.extras)}
            level += _requires(wheels[key], read[key], platform)
    return wheels


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
    needed: Iterable[Requirement],
    wanted: Packages,
    on_line: Callable[[str], None],
) -> None:
    argv = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--no-deps"]
    argv += ["--progress-bar", "off", "--only-binary", ":all:", "--implementation", "cp"]
    argv += ["--python-version", platform.python, "--dest", str(folder)]
    for tag in platform_tags(platform):
        argv += ["--platform", tag]
    argv += ["--constraint", str(wanted.constraints)] if wanted.constraints is not None else []
    argv += ["--", *dict.fromkeys(f"{r.name}{r.specifier}" for r in needed)]
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
            f"{platform.machine}: {(problem or last)[:300]}; or {wanted.otherwise}"
        )


def _archive_of(folder: Path, archive: Archive, otherwise: str, on_line: Callable[[str], None]) -> Path:
    """The archive in `folder`, downloaded unless it is there; it has its name only when its hash is right."""
    final = folder / archive.name
    if final.is_file() and _sha256(final) == archive.sha256:
        return final
    on_line(f"downloading {archive.url}")
    partial = folder / f".{archive.name}.partial"
    try:
        with urllib.request.urlopen(archive.url, timeout=DOWNLOAD_S) as answer, partial.open("wb") as out:
            shutil.copyfileobj(answer, out)
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise PreflightError(f"{archive.url} cannot be downloaded here: {reason}; or {otherwise}") from None
    if (found := _sha256(partial)) != archive.sha256:
        partial.unlink()
        raise IntegrityError(
            f"{archive.url}: sha256 is {found}, pinned is {archive.sha256}; nothing was sent"
        )
    return partial.replace(final)


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _accepts(requirement: Requirement, wheel: Path) -> bool:
    from packaging.utils import parse_wheel_filename

    return requirement.specifier.contains(parse_wheel_filename(wheel.name)[1], prereleases=True)


def _wheel_of(folder: Path, name: str, asked: Sequence[Requirement]) -> Path:
    """The newest wheel of that name that all requirements accept; other pins may have left another."""
    from packaging.utils import parse_wheel_filename

    named = [path for path in folder.glob("*.whl") if parse_wheel_filename(path.name)[0] == name]
    found = [path for path in named if all(_accepts(requirement, path) for requirement in asked)]
    if not found:
        raise PreflightError(f"pip downloaded no wheel of {name}")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def _requires(wheel: Path, extras: Iterable[str], platform: Platform) -> list[Requirement]:
    """What a wheel needs on the host, with these extras; "" is no extra."""
    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        metadata = HeaderParser().parsestr(archive.read(name).decode("utf-8", "replace"))
    found = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    return [
        requirement
        for requirement in found
        if requirement.marker is None
        or any(requirement.marker.evaluate({**platform.markers, "extra": extra}) for extra in extras)
    ]
