"""A host made ready for a release: its folders, and an environment with the release's dependencies.

The project itself is never installed: it runs from `PYTHONPATH=releases/<id>`. Building is a job that goes on
when the link is lost; asking again finds it, or its result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.errors import PreflightError
from remote.host.jobs import HostJobs
from remote.host.python import HostPython
from remote.host.wheelhouse import host_packages, read_platform, send_packages
from remote.paths import REPOSITORY, STATE
from remote.ssh.connection import HostConnection
from remote.transfer.sync import Sync

PROGRAM = "lean.host_venv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What runs a release.

    `built`: this call made it. `key` is empty for an environment of the user's own.
    """

    python: HostPython
    venv: str
    key: str
    built: bool


def bootstrap(
    connection: HostConnection,
    release: Sync,
    *,
    on_line: Callable[[str], None],
    wheels: str | None = None,
    repo: Path = REPOSITORY,
) -> Environment:
    """Make folders and environment, or find them there in one round trip. `on_line` gets the build's log.

    `wheels`: a folder of the host that holds every package. A host with `internet: false` gets one from here,
    of what `repo` asks for.
    Errors: `PreflightError` with the command that mends it, `LeanError` when pip fails, `Detached`.
    """
    system = HostPython(release=release.path, python=connection.host.python)
    where = ("--root", release.root, "--release", release.path)
    if connection.host.venv is not None:
        return _own(connection, system, release, connection.host.venv, on_line)
    found = connection.run_json(system.argv(PROGRAM, "check", *where))
    ready = bool(found["ready"])
    if not ready:
        jobs, name = HostJobs(connection, system), f"bootstrap-{found['key']}"
        if not connection.host.internet and wheels is None and not _building(jobs, name):
            wheels = _relay_wheels(connection, release, found, repo, on_line)
        offline = ("--wheels", wheels) if wheels is not None else ()
        if not _building(jobs, name):  # one that somebody started already is followed instead
            jobs.start_program(name, PROGRAM, "build", *where, *offline)
        found = jobs.follow(name, on_line).document(connection.name)
    return Environment(
        python=HostPython(release=release.path, python=str(found["python"])),
        venv=str(found["venv"]),
        key=str(found["key"]),
        built=not ready,
    )


def _relay_wheels(
    connection: HostConnection,
    release: Sync,
    found: Mapping[str, Any],
    repo: Path,
    on_line: Callable[[str], None],
) -> str:
    """Every package the environment needs, downloaded here for that host, as a folder there."""
    key = str(found["key"])
    if not re.fullmatch(r"[0-9a-f]{16}", key):
        raise PreflightError(f"{connection.name} names its environment {key[:40]!r}, which is no hash")
    return send_packages(
        connection,
        host_packages(repo),
        read_platform(found["platform"]),
        here=STATE / "wheels" / key,
        there=f"{release.root}/tmp/wheels-{key}",
        on_line=on_line,
    )


def _building(jobs: HostJobs, name: str) -> bool:
    """Whether somebody builds that very environment now."""
    return any(job.name == name and not job.finished for job in jobs.list())


def _own(
    connection: HostConnection,
    system: HostPython,
    release: Sync,
    venv: str,
    on_line: Callable[[str], None],
) -> Environment:
    """The user's own environment, as it is, if it has what nothing can do without; the rest is named."""
    python = f"{venv}/bin/python"
    where = ("--root", release.root, "--release", release.path)
    found = connection.run_json(system.argv(PROGRAM, "missing", *where, "--python", python))
    if found["missing"]:
        raise PreflightError(
            f"{connection.name}: {venv} lacks {', '.join(found['missing'])}; install them there with "
            f"`{python} -m pip install -c {release.path}/constraints.txt {' '.join(found['missing'])}`, "
            "or leave `venv` out"
        )
    if found["lacks"]:
        on_line(f"{venv} lacks {', '.join(found['lacks'])}: verbs that need them will say so")
    usable = HostPython(release=release.path, python=str(found["python"]))
    return Environment(python=usable, venv=venv, key="", built=False)
