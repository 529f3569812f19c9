"""Which GPU is here, asked for in a process of its own, since a driver may hang."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lean.errors import PreflightError
from lean.toolchain.workers import Lost, run_jobs

Find = Callable[[], dict[str, Any]]


def find_gpu() -> dict[str, Any]:
    """The first GPU: its facts as `device`, or the `reason` there is none, or why it is `unusable`."""
    try:
        from kernels import driver
        from lean.toolchain.chip.device import device_facts
    except ModuleNotFoundError as error:
        return {"status": "not used", "reason": f"no GPU can be used: the package {error.name} is missing"}
    try:
        with driver.open_device() as device:
            return {"status": "used", "device": device_facts(device)}
    except (driver.NoDriver, driver.NoGpu) as error:
        return {"status": "no GPU", "reason": f"no GPU: {error}"}
    except driver.DriverError as error:
        return {"status": "unusable", "unusable": str(error)}


def found_apart(find: Find = find_gpu, seconds: float = 60.0) -> dict[str, Any]:
    """What `find` says, in a worker; a driver that hangs or crashes is `unusable`."""
    (found,) = run_jobs(_ask, [find], workers=1, seconds=seconds)
    if isinstance(found, Lost):
        return {"status": "unusable", "unusable": found.reason}
    return dict(found)


def needed_gpu(purpose: str, otherwise: str, find: Find = find_gpu, seconds: float = 60.0) -> dict[str, Any]:
    """The GPU's facts. Errors: `PreflightError` for none to use `purpose`, with what to do `otherwise`."""
    found = found_apart(find, seconds)
    if "device" not in found:
        raise PreflightError(f"no GPU {purpose}: {found.get('unusable') or found['reason']}; {otherwise}")
    device: dict[str, Any] = found["device"]
    return device


def _ask(find: Find) -> dict[str, Any]:
    return find()
