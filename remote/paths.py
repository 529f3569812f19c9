"""Where things lie on a host, below its root."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostPaths:
    """The layout below `root`, an absolute POSIX path on the host."""

    root: str

    @property
    def releases(self) -> str:
        """The synced code, one directory per release id."""
        return f"{self.root}/releases"

    @property
    def venvs(self) -> str:
        """Virtual environments, keyed by the lock file's hash."""
        return f"{self.root}/venvs"

    @property
    def models(self) -> str:
        """Checkpoints: `<org>__<name>/<revision>/`."""
        return f"{self.root}/models"

    @property
    def packs(self) -> str:
        """Leanpacks: `<contract>-<lock8>/`."""
        return f"{self.root}/packs"

    @property
    def jobs(self) -> str:
        """Detached jobs, one directory each."""
        return f"{self.root}/jobs"

    @property
    def results(self) -> str:
        """Run directories before they are pulled."""
        return f"{self.root}/results"

    @property
    def logs(self) -> str:
        """Logs that belong to no job."""
        return f"{self.root}/logs"

    @property
    def tmp(self) -> str:
        """Staging: everything here may be deleted when nothing runs."""
        return f"{self.root}/tmp"

    @property
    def all(self) -> tuple[str, ...]:
        """Every directory of the layout, for bootstrap to make."""
        return (
            self.releases,
            self.venvs,
            self.models,
            self.packs,
            self.jobs,
            self.results,
            self.logs,
            self.tmp,
        )
