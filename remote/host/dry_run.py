"""`--dry-run`: a site that prints what would be done, and answers nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lean.contracts import Host
from remote.console import Console
from remote.host.wheelhouse import Packages
from remote.paths import REPOSITORY, HostPaths
from remote.ssh.command import command_line
from remote.transfer.release import read_release


class Unknown(dict[Any, Any]):
    """What a program that was not run would have answered: every field reads as its own name, `<name>`."""

    def __init__(self, name: str = "document") -> None:
        super().__init__()
        self._name = name

    def __missing__(self, key: object) -> Unknown:
        return Unknown(key if isinstance(key, str) else self._name)

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return f"<{self._name}>"

    __fspath__ = __str__

    def __format__(self, spec: str) -> str:
        return str(self)


class DrySite:
    """Prints host, argv and bytes instead of acting, and keeps them in `steps`. No network at all."""

    def __init__(self, console: Console, name: str, host: Host) -> None:
        self.console, self.name, self.host = console, name, host
        self.paths = HostPaths(host.root)
        self.steps: list[str] = []
        release = read_release(REPOSITORY)
        self.release = f"{host.root}/releases/{release.id}"
        total = sum(entry.size for entry in release.source.listing())
        self._step(
            f"sync {len(release.files)} files, {total} bytes, into {self.release}, if it is not whole there"
        )
        self._step("bootstrap the environment that constraints.txt names, if it is not there")

    def call(self, module: str, *arguments: str) -> dict[str, Any]:
        """Print the command."""
        self._show("run", module, *arguments)
        return Unknown()

    def job(self, name: str, module: str, *arguments: str) -> dict[str, Any]:
        """Print the command."""
        self._show(f"job {name}", module, *arguments)
        return Unknown()

    outcome = job

    def service(
        self, name: str, module: str, *arguments: str, ready_file: str, timeout_s: float
    ) -> dict[str, Any]:
        """Print the command."""
        return self.job(name, module, *arguments)

    def ready(self, name: str, ready_file: str) -> dict[str, Any] | None:
        """Nobody was asked, so nothing is known to run."""
        return None

    def runs(self, name: str) -> bool:
        """Nobody was asked, so nothing is known to run."""
        return False

    def stop(self, name: str, *, grace_s: float = 10.0) -> dict[str, Any]:
        """Print what would be stopped."""
        self._step(f"stop job {name}")
        return Unknown()

    def push(self, source: Path, target: str) -> None:
        """Print both ends."""
        self._step(f"push {source}, {source.stat().st_size} bytes -> {target}")

    def pull(self, source: str, target: Path) -> None:
        """Print both ends."""
        self._step(f"pull {source} -> {target} (size known on the host only)")

    def packages(self, wanted: Packages, name: str, platform: Mapping[str, Any]) -> str:
        """Print what would be downloaded; for which platform only the host knows."""
        there = f"{self.paths.tmp}/wheels-{name}"
        self._step(
            f"if it is not installed there: download {wanted} here, with all that they require, for the "
            f"host's platform, and push them -> {there} (sizes known to the index only)"
        )
        return there

    def result(self, document: Mapping[str, Any], show: Callable[[], None] | None = None) -> None:
        """Nobody answered: the steps are the result."""

    def _show(self, how: str, module: str, *arguments: str) -> None:
        self._step(f"{how}: {command_line(['python', '-m', module, *map(str, arguments)])}")

    def _step(self, text: str) -> None:
        self.console.line(f"{self.name}: {text}")
        self.steps.append(text)
