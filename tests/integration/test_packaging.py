"""What pyproject.toml and constraints.txt promise about the tree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_of_the_tree_is_listed() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("lean", "remote", "kernels")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_everything_that_is_asked_for_is_pinned() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if "==" in line
    )
    pinned = {normal(name) for name in pins}
    project = PROJECT["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra
    wanted += (ROOT / "tests" / "oracle" / "requirements.txt").read_text().split()
    assert {normal(re.split(r"[\[<>=;]", item)[0]) for item in wanted} - pinned == set()
    assert pins["torch"] == "2.13.0"


def test_the_top_level_is_what_was_agreed() -> None:
    asked_for = {"tasks.py", "pyproject.toml", "hosts.yaml", "lean", "remote", "kernels", "profiles"}
    asked_for |= {"results", "tests"}
    beside = {
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "constraints.txt",
        "docs",
    }
    visible = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    made_by_tools = {"hosts.local.yaml", "build", "dist", "leanstack.egg-info"}
    assert visible - made_by_tools == asked_for | beside
