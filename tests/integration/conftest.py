"""A clone of this checkout with its own embedded host, whose environment is the one that runs the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """One verb that ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """Its one JSON document."""
        found: dict[str, Any] = json.loads(self.stdout)
        return found


@dataclass(frozen=True)
class Checkout:
    """A copy of the project that a test may use as its own."""

    path: Path

    def invoke(self, *words: str, timeout: float = 240) -> Outcome:
        """Run `invoke <words>` there."""
        done = subprocess.run(
            [sys.executable, "-m", "invoke", *words],
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def hosts(self, text: str) -> Iterator[None]:
        """Another `hosts.local.yaml` for a while."""
        file = self.path / "hosts.local.yaml"
        before = file.read_text()
        file.write_text(text)
        try:
            yield
        finally:
            file.write_text(before)


def copy_checkout(target: Path) -> Checkout:
    """The files of this checkout as a release has them, in a git repository of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in listed:
        if name.startswith("results/") or not (ROOT / name).is_file():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((ROOT / name).read_bytes())
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "a copy")):
        subprocess.run(
            ["git", "-c", "user.name=test", "-c", "user.email=test@example.invalid", *words],
            cwd=target,
            check=True,
        )
    return Checkout(target)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    copy = copy_checkout(tmp_path_factory.mktemp("checkout"))
    hosts = f"hosts:\n  loopback:\n    venv: {sys.prefix}\n    python: {sys.executable}\n"
    (copy.path / "hosts.local.yaml").write_text(hosts)
    yield copy
    copy.invoke("remote.stop")
    copy.invoke("remote.down")


@pytest.fixture(scope="module")
def demo(checkout: Checkout) -> dict[str, Any]:
    """The document of `invoke demo`, run once: afterwards the host holds a snapshot and a pack."""
    outcome = checkout.invoke("demo", "--json")
    assert outcome.code == 0, outcome.stderr
    return outcome.document
