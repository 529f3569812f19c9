"""Environments on a host: a release with one tiny dependency from a wheel made here. Nothing is downloaded.

Making an environment with pip in it takes seconds, so one such test is quick enough and the others are slow.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import wheel

from lean.errors import LeanError, PreflightError
from remote.host.bootstrap import bootstrap
from remote.host.python import HostPython
from remote.host.wheelhouse import download_packages, host_packages, read_platform
from remote.transfer.release import Release
from remote.transfer.sync import Sync

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def release(any_host: Any, tmp_path: Path) -> Callable[..., Sync]:
    """A release on the host, put there by hand: the host programs, a pyproject and a constraints file."""

    def make(
        *requirements: str, constraints: str = "tinydep==1.0\n", name: str = "abc1234-000000000000"
    ) -> Sync:
        root = any_host.host.root
        path = Path(root) / "releases" / name
        (path / "lean").mkdir(parents=True)
        for program in ("__init__.py", "errors.py", "cli.py", "host_venv.py"):
            shutil.copy(REPO / "lean" / program, path / "lean")
        for package in ("files", "jobs"):
            source, copy = REPO / "lean" / package, path / "lean" / package
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        extra = f"[project]\nname = 'x'\n[project.optional-dependencies]\nhost = {json.dumps(requirements)}\n"
        (path / "pyproject.toml").write_text(extra)
        (path / "constraints.txt").write_text(constraints)
        shown = Release(id=name, git_sha="0" * 40, dirty=False, diff_sha256=None, files={}, source=None)  # type: ignore[arg-type]
        return Sync(release=shown, path=str(path), root=root, unchanged=False, sent=0, seconds=0.0)

    return make


@pytest.fixture
def wheels(tmp_path: Path) -> str:
    for version in ("1.0", "2.0"):
        wheel(tmp_path / "wheels", "tinydep", version)
    return str(tmp_path / "wheels")


def quiet(line: str) -> None:
    """Nobody reads along."""


def connect(any_host: Any, **fields: Any) -> Any:
    return any_host.connect(host=any_host.spec(python=sys.executable, **fields))


def trips(connection: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    real = connection.run
    monkeypatch.setattr(connection, "run", lambda *a, **k: seen.append(a) or real(*a, **k))
    return seen


@pytest.mark.parametrize(
    "any_host", ["embedded", pytest.param("sshd", marks=[pytest.mark.sshd, pytest.mark.slow])], indirect=True
)
def test_an_environment_is_built_once_and_then_found_in_one_round_trip(
    any_host: Any, release: Callable[..., Sync], wheels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    synced = release("tinydep>=1")
    built = bootstrap(connect(any_host), synced, on_line=lines.append, wheels=wheels)
    connection = connect(any_host)
    seen = trips(connection, monkeypatch)
    found = bootstrap(connection, synced, on_line=quiet)

    assert (built.built, found.built, len(seen)) == (True, False, 1)
    assert (found.venv, found.key, found.python) == (built.venv, built.key, built.python)
    ask = [built.python.python, "-I", "-c", "import tinydep; print(tinydep.version)"]
    assert (
        subprocess.run(ask, capture_output=True, text=True).stdout == "1.0\n"
    )  # the constraint, not the newest
    mark = json.loads((Path(built.venv) / "bootstrap.json").read_text())
    assert (mark["key"], mark["requirements"]) == (built.key, ["tinydep>=1"])
    assert any("tinydep" in line for line in lines)
    jobs = connection.run_json(built.python.argv("lean.jobs", "list", "--root", "/nonexistent"))
    assert jobs == {"jobs": []}  # the release runs without being installed
    for name in ("venvs", "models", "packs", "jobs", "results", "logs", "tmp"):
        assert Path(synced.root, name).stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_a_broken_install_says_so_and_leaves_no_half_environment(
    any_host: Any, release: Callable[..., Sync], wheels: str
) -> None:
    lines: list[str] = []
    synced = release("tinydep", "nosuchpackage")
    with pytest.raises(LeanError, match="installing failed"):
        bootstrap(connect(any_host), synced, on_line=lines.append, wheels=wheels)

    assert any("nosuchpackage" in line for line in lines)
    assert list(Path(synced.root, "venvs").iterdir()) == []


@pytest.mark.slow
def test_a_leftover_without_its_mark_is_built_anew(
    any_host: Any, release: Callable[..., Sync], wheels: str
) -> None:
    synced, connection = release("tinydep"), connect(any_host)
    made = bootstrap(connection, synced, on_line=quiet, wheels=wheels)
    Path(made.venv, "bootstrap.json").unlink()
    Path(made.venv, "leftover").touch()
    again = bootstrap(connection, synced, on_line=quiet, wheels=wheels)

    assert again.built
    assert not Path(made.venv, "leftover").exists()


def test_the_key_follows_constraints_and_requirements(any_host: Any, release: Callable[..., Sync]) -> None:
    connection, keys = connect(any_host), set()
    for number, (requirement, constraints) in enumerate(
        [("tinydep", "tinydep==1.0\n"), ("tinydep>=1", "tinydep==1.0\n"), ("tinydep", "tinydep==2.0\n")]
    ):
        made = release(requirement, constraints=constraints, name=f"abc1234-{number:012d}")
        system = HostPython(release=made.path, python=sys.executable)
        where = ("--root", made.root, "--release", made.path)
        keys.add(connection.run_json(system.argv("lean.host_venv", "check", *where))["key"])
    assert len(keys) == 3


def test_a_python_that_cannot_make_environments_names_the_package(
    any_host: Any, release: Callable[..., Sync], tmp_path: Path
) -> None:
    """A Debian python3 without python3-venv: `ensurepip` is missing."""
    hidden = tmp_path / "python"
    hidden.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c "
        "'import importlib.util as u, runpy, sys; f = u.find_spec\n"
        'u.find_spec = lambda n, *a: None if n == "ensurepip" else f(n, *a)\n'
        'sys.argv = sys.argv[2:]; runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)\' "$@"\n'
    )
    hidden.chmod(0o755)
    connection, synced = any_host.connect(), release("tinydep")
    with pytest.raises(PreflightError, match=r"sudo apt install python3\.\d+-venv"):
        connection.run_json(
            [
                *("env", f"PYTHONPATH={synced.path}", str(hidden), "-m", "lean.host_venv", "build"),
                *("--root", connection.host.root, "--release", synced.path),
            ]
        )


def test_an_environment_of_the_users_own_is_used_as_it_is(
    any_host: Any, release: Callable[..., Sync], tmp_path: Path
) -> None:
    own = tmp_path / "own"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", own], check=True)
    site = next(own.glob("lib/python*/site-packages"))
    connection = connect(any_host, venv=str(own))
    synced = release("tinydep>=1")
    with pytest.raises(
        PreflightError, match=r"own lacks tinydep; install them there with `.*-m pip install -c"
    ):
        bootstrap(connection, synced, on_line=quiet)

    wheel(tmp_path / "w", "tinydep", "1.0")
    with zipfile.ZipFile(tmp_path / "w" / "tinydep-1.0-py3-none-any.whl") as archive:
        archive.extractall(site)
    made = bootstrap(connection, synced, on_line=quiet)

    assert (made.python.python, made.built, made.key) == (f"{own}/bin/python", False, "")
    assert not os.path.exists(f"{synced.root}/venvs")
    assert os.path.isdir(f"{synced.root}/tmp") and os.path.isdir(f"{synced.root}/packs")


def test_an_own_environment_may_lack_what_only_compiles_or_fetches_and_that_is_said(
    any_host: Any, release: Callable[..., Sync], tmp_path: Path
) -> None:
    own, lines = tmp_path / "own", []
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", own], check=True)
    connection, synced = connect(any_host, venv=str(own)), release("cuda-tile[tileiras]==1.7.*", "torch>=2")
    made = bootstrap(connection, synced, on_line=lines.append)
    assert made.python.python == f"{own}/bin/python"
    assert lines == [f"{own} lacks cuda-tile, torch: verbs that need them will say so"]


def test_an_own_environment_that_does_not_run_is_named(any_host: Any, release: Callable[..., Sync]) -> None:
    with pytest.raises(PreflightError, match=r"/no/venv/bin/python does not run"):
        bootstrap(connect(any_host, venv="/no/venv"), release("tinydep"), on_line=quiet)


def test_a_release_without_a_host_extra_is_refused(any_host: Any, release: Callable[..., Sync]) -> None:
    synced = release("tinydep")
    Path(synced.path, "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(PreflightError, match="no `host` extra"):
        bootstrap(connect(any_host), synced, on_line=quiet)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that pip can see: wheels of one package for three machines."""
    folder = tmp_path / "index"
    for machine in ("manylinux_2_28_aarch64", "manylinux_2_28_x86_64", "win32"):
        wheel(folder, "chipdep", "1.0", f"cp312-cp312-{machine}")
    wheel(folder, "tinydep", "1.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def a_repo(folder: Path, *requirements: str) -> Path:
    folder.mkdir()
    extra = f"[project]\nname = 'x'\n[project.optional-dependencies]\nhost = {json.dumps(requirements)}\n"
    (folder / "pyproject.toml").write_text(extra)
    (folder / "constraints.txt").write_text("tinydep==1.0\nchipdep==1.0\n")
    return folder


SPARK = {
    "python": "3.12",
    "machine": "aarch64",
    "glibc": [2, 39],
    "markers": {"python_version": "3.12", "platform_machine": "aarch64", "platform_system": "Linux"},
}


def test_wheels_are_chosen_for_the_hosts_machine_and_not_for_ours(index: Path, tmp_path: Path) -> None:
    repo = a_repo(tmp_path / "repo", "chipdep", "tinydep")
    count = download_packages(read_platform(SPARK), tmp_path / "wheels", host_packages(repo), on_line=quiet)
    names = sorted(path.name for path in (tmp_path / "wheels").iterdir())
    assert names == ["chipdep-1.0-cp312-cp312-manylinux_2_28_aarch64.whl", "tinydep-1.0-py3-none-any.whl"]
    assert count == 2


def test_a_package_without_a_wheel_for_the_host_is_named(index: Path, tmp_path: Path) -> None:
    repo = a_repo(tmp_path / "repo", "chipdep")
    old = SPARK | {"glibc": [2, 17]}
    with pytest.raises(PreflightError, match=r"Python 3\.12 on aarch64: .*chipdep"):
        download_packages(read_platform(old), tmp_path / "wheels", host_packages(repo), on_line=quiet)


@pytest.mark.security("a hostile platform or environment name leads to no other folder")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"glibc": []}, "no glibc 2"),
        ({"glibc": [2, 10**9]}, "no glibc 2"),
        ({"machine": "../x"}, "no wheels for"),
        ({"python": "3.12; x"}, "no wheels for"),
        ({"markers": None}, "does not say what platform"),
    ],
)
def test_a_platform_that_is_none_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PreflightError, match=message):
        read_platform(SPARK | changes)


def test_requirements_are_those_of_the_host_and_not_of_this_machine(index: Path, tmp_path: Path) -> None:
    needs = [
        "onlyarm; platform_machine == 'aarch64'",
        "onlyx86; platform_machine == 'x86_64'",
        "later; python_version >= '3.12'",
        "optional; extra == 'more'",
    ]
    wheel(index, "parent", "1.0", needs=needs)
    for name in ("onlyarm", "onlyx86", "later", "optional"):
        wheel(index, name, "1.0")
    repo = a_repo(tmp_path / "repo", "parent")
    download_packages(read_platform(SPARK), tmp_path / "wheels", host_packages(repo), on_line=quiet)
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "wheels").iterdir())
    assert names == ["later", "onlyarm", "parent"]
    repo = a_repo(tmp_path / "other", "parent[more]")
    download_packages(read_platform(SPARK), tmp_path / "wheels", host_packages(repo), on_line=quiet)
    assert len(list((tmp_path / "wheels").glob("optional-*.whl"))) == 1


@pytest.mark.parametrize(
    "any_host", ["embedded", pytest.param("sshd", marks=[pytest.mark.sshd, pytest.mark.slow])], indirect=True
)
def test_a_host_without_internet_gets_its_wheels_from_here(
    any_host: Any, release: Callable[..., Sync], index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote.host.bootstrap.STATE", tmp_path / "state")
    made = release("tinydep")
    repo, lines = a_repo(tmp_path / "repo", "tinydep"), []
    built = bootstrap(connect(any_host, internet=False), made, on_line=lines.append, repo=repo)
    assert built.built and any("1 packages" in line for line in lines)
    ask = [built.python.python, "-I", "-c", "import tinydep; print(tinydep.version)"]
    assert subprocess.run(ask, capture_output=True, text=True).stdout == "1.0\n"
    assert [p.name for p in Path(made.root, "tmp").glob("wheels-*/*.whl")] == ["tinydep-1.0-py3-none-any.whl"]
