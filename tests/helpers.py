"""What tests of several folders use: waiting, bytes to copy, the processes of a copy, a site."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]


def until(look: Callable[[], Any], good: Callable[[Any], Any] = bool, *, within_s: float = 60.0) -> Any:
    """What `look` sees once it is good. The deadline is only for a test that would hang."""
    deadline = time.monotonic() + within_s
    while not good(seen := look()):
        assert time.monotonic() < deadline, f"it never came so far: {seen!r}"
        time.sleep(0.005)
    return seen


def pattern(size: int, seed: int = 1) -> bytes:
    """So many bytes, others for another seed."""
    block = bytes((i * seed + (i >> 8)) & 0xFF for i in range(65521))
    return (block * (size // len(block) + 1))[:size]


def far_ends(server: int) -> list[int]:
    """Pids below the server that take part in a copy."""
    found = []
    for pid in descendants(server):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"lean.transfer" in words or b"lean.relay" in words or b"rsync" in words:
            found.append(pid)
    return found


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on; none of a process that is gone."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in children for found in (int(child), *descendants(int(child)))]


def site_on(connection: Any) -> Any:
    """A `LiveSite` with this checkout as its release and the tests' interpreter."""
    from remote.console import Console
    from remote.host.python import HostPython
    from remote.host.site import LiveSite

    python = HostPython(release=str(REPO), python=sys.executable)
    return LiveSite(Console(), connection, python, connection.host.root)
