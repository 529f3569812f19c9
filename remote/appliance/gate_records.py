"""What this checkout keeps of a host's precision gates."""

from __future__ import annotations

from pathlib import Path


def newest_record(results: Path, host: str) -> Path | None:
    """The gate.json of the host's newest record, if any."""
    return max((results / "v1" / host / "gate").glob("*/gate.json"), default=None)
