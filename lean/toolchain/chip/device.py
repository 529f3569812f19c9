"""What the driver says of a GPU. Nothing here needs the compiler."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernels import driver

_RELEASE = Path("/sys/module/nvidia/version")


def device_facts(device: driver.Device) -> dict[str, Any]:
    """The GPU's own facts, and the kernel driver's release where Linux shows it."""
    release = _RELEASE.read_text().strip() if _RELEASE.is_file() else None
    return asdict(device.facts) | {"driver_release": release}
