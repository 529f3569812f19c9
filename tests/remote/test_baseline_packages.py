"""Another system for a host without internet: its packages come from here, for that host's platform."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO, site_on, wheel

from lean.contracts import Host
from lean.errors import IntegrityError, PreflightError, UsageError
from remote.appliance import baseline
from remote.console import Console
from remote.host.dry_run import DrySite
from remote.host.wheelhouse import Archive, Packages, download_packages, read_platform

SPARK = {
    "python": "3.12",
    "machine": "aarch64",
    "glibc": [2, 39],
    "markers": {"python_version": "3.12", "platform_machine": "aarch64", "platform_system": "Linux"},
}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that pip can see."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def brought(tmp_path: Path, *requirements: str, archives: tuple[Archive, ...] = ()) -> list[str]:
    """Names of what a Spark gets for these."""
    wanted = Packages(requirements=requirements, archives=archives, otherwise="use --bring")
    folder = tmp_path / "wheels"
    count = download_packages(read_platform(SPARK), folder, wanted, on_line=lambda line: None)
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == count
    return names


def test_a_requirement_found_later_that_refuses_a_wheel_brings_one_that_all_accept(
    index: Path, tmp_path: Path
) -> None:
    wheel(index, "dep", "1.0", needs=["olddep"])
    wheel(index, "dep", "2.0", needs=["newdep"])
    wheel(index, "direct", "1.0", needs=["dep>=1"])
    wheel(index, "mid", "1.0", needs=["last"])
    wheel(index, "last", "1.0", needs=["dep<2"])
    for name in ("olddep", "newdep"):
        wheel(index, name, "1.0")
    names = brought(tmp_path, "direct==1.0", "mid==1.0")
    assert "dep-1.0-py3-none-any.whl" in names and "olddep-1.0-py3-none-any.whl" in names
    assert not any(name.startswith("dep-2.0") for name in names)
    offline = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(tmp_path / "wheels")]
    argv = [*offline, "--dry-run", "--ignore-installed", "--quiet", "direct==1.0", "mid==1.0"]
    subprocess.run(argv, env=os.environ | {"PIP_FIND_LINKS": ""}, check=True)


def test_requirements_that_no_wheel_meets_are_told_in_pip_s_words_with_the_other_way(
    index: Path, tmp_path: Path
) -> None:
    wheel(index, "dep", "2.0")
    wheel(index, "direct", "1.0", needs=["dep<2"])
    with pytest.raises(PreflightError, match=r"Python 3\.12 on aarch64: .*dep.*; or use --bring"):
        brought(tmp_path, "direct==1.0")


def an_archive(tmp_path: Path) -> Archive:
    file = tmp_path / "sources-1.tar.gz"
    file.write_bytes(b"sources")
    return Archive(url=file.as_uri(), sha256=hashlib.sha256(b"sources").hexdigest())


def test_sources_that_are_built_come_beside_the_wheels_once(index: Path, tmp_path: Path) -> None:
    wheel(index, "tool", "1.0")
    archive = an_archive(tmp_path)
    expected = ["sources-1.tar.gz", "tool-1.0-py3-none-any.whl"]
    assert brought(tmp_path, "tool==1.0", archives=(archive,)) == expected
    (tmp_path / archive.name).unlink()  # what is there whole is not downloaded again
    assert brought(tmp_path, "tool==1.0", archives=(archive,)) == expected
    (tmp_path / "wheels" / archive.name).write_bytes(b"torn")
    with pytest.raises(PreflightError, match=r"sources-1\.tar\.gz cannot be downloaded here: .*use --bring"):
        brought(tmp_path, "tool==1.0", archives=(archive,))


@pytest.mark.security("sources that are not the pinned ones are not sent to the host")
def test_sources_with_another_hash_are_refused_and_not_kept(index: Path, tmp_path: Path) -> None:
    archive = an_archive(tmp_path)
    (tmp_path / archive.name).write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"pinned is .*nothing was sent"):
        brought(tmp_path, archives=(archive,))
    assert list((tmp_path / "wheels").iterdir()) == []


class Offline(DrySite):
    """A host without internet that says whether a system is installed."""

    def __init__(self, *, installed: bool, internet: bool = False) -> None:
        super().__init__(Console(), "far", Host(contract="tiny-cpu", internet=internet))
        self.installed, self.wanted = installed, Packages(requirements=())

    def call(self, module: str, *arguments: str) -> dict[str, Any]:
        super().call(module, *arguments)
        found = {"environment": "baseline-x-0123", "installed": self.installed, "platform": SPARK}
        return found if arguments[0] == "needs" else {}

    def packages(self, wanted: Packages, name: str, platform: Mapping[str, Any]) -> str:
        self.wanted = wanted
        return super().packages(wanted, name, platform)


def request(system: str, bring: str | None = None) -> baseline.BaselineRequest:
    return baseline.BaselineRequest(system=system, profile="decode_64_256", bring=bring)


def test_a_host_without_internet_installs_from_what_was_sent_and_asks_only_once() -> None:
    site = Offline(installed=False)
    baseline.install(site, request("llama.cpp"))
    assert site.steps[-1].endswith("--bring '~/lean/tmp/wheels-baseline-x-0123'")
    assert "cmake==4.4.4" in site.wanted.requirements and "--bring" in site.wanted.otherwise
    (sources,) = site.wanted.archives
    assert sources.name == "llama_cpp_python-0.3.36.tar.gz" and len(sources.sha256) == 64
    there = Offline(installed=True)
    baseline.install(there, request("llama.cpp"))
    assert "--bring" not in there.steps[-1] and there.wanted.requirements == ()


def test_a_folder_of_ones_own_or_a_host_with_internet_needs_nothing_from_here() -> None:
    own = Offline(installed=False)
    baseline.install(own, request("transformers", bring="/data/wheels"))
    assert own.steps[-1].endswith("--bring /data/wheels") and own.wanted.requirements == ()
    online = Offline(installed=False, internet=True)
    baseline.install(online, request("transformers"))
    assert len(online.steps) == 3 and "--bring" not in online.steps[-1]


def test_a_dry_run_says_what_would_be_downloaded(tmp_path: Path) -> None:
    site = DrySite(Console(), "far", Host(contract="tiny-cpu", internet=False))
    baseline.install(site, request("transformers"))
    needs, download, install = site.steps[2:]
    assert "lean.baseline needs --system transformers" in needs
    assert "download transformers[serving]==5.17.0, torch==2.13.0" in download and "push them" in download
    assert install.startswith("job baseline-install:") and "--bring" in install


def test_the_host_says_what_its_wheels_must_fit_and_that_nothing_is_installed(embedded_host: Any) -> None:
    site = site_on(embedded_host.connect())
    where = ("--system", "transformers", "--venvs", f"{site.paths.root}/venvs")
    found = site.call("lean.baseline", "needs", *where)
    assert found["installed"] is False and found["environment"].startswith("baseline-transformers-")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert read_platform(found["platform"]).python == version
    with pytest.raises(PreflightError, match="vllm needs an NVIDIA GPU"):
        site.call("lean.baseline", "needs", "--system", "vllm", "--venvs", "/nowhere")


@pytest.mark.security("the name a host gives an environment leads to no other folder here")
def test_an_environment_s_name_that_leads_elsewhere_is_refused(embedded_host: Any) -> None:
    site = site_on(embedded_host.connect())
    with pytest.raises(UsageError, match="expected a plain name"):
        site.packages(Packages(requirements=("x",)), "../../elsewhere", SPARK)


def test_packages_are_sent_to_the_host_verified(
    embedded_host: Any, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote.host.site.STATE", tmp_path / "state")
    wheel(index, "tinydep", "1.0")
    site = site_on(embedded_host.connect())
    there = Path(site.packages(Packages(requirements=("tinydep==1.0",)), "baseline-x-0123", SPARK))
    assert there == Path(site.paths.tmp) / "wheels-baseline-x-0123"
    (sent,) = there.iterdir()
    assert sent.read_bytes() == (index / sent.name).read_bytes()


def test_the_verb_says_it_too() -> None:
    argv = [sys.executable, "-m", "invoke", "remote.baseline-up", "--dry-run", "--json"]
    done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not any("download" in step for step in json.loads(done.stdout)["would"])  # it has internet
