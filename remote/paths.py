"""Where things lie: in this checkout, and on a host below its root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
STATE = REPOSITORY / ".lean"  # what the tool keeps here, ignored by git
LOOPBACK = STATE / "loopback"


@dataclass(frozen=True, slots=True)
class HostPaths:
    """The layout below `root`, the host's root."""

    root: str

    @property
    def models(self) -> str:
        """Checkpoints: `<org>__<name>/<revision>/`."""
        return f"{self.root}/models"

    @property
    def packs(self) -> str:
        """Leanpacks: `<contract>-<lock8>/`."""
        return f"{self.root}/packs"

    @property
    def results(self) -> str:
        """Run directories before they are pulled."""
        return f"{self.root}/results"

    @property
    def artifacts(self) -> str:
        """Toolchain proofs before they are pulled."""
        return f"{self.root}/artifacts"

    @property
    def tmp(self) -> str:
        """Staging: everything here may be deleted when nothing runs."""
        return f"{self.root}/tmp"
