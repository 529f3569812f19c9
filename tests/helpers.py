"""What tests of several folders use: waiting, bytes to copy, a target's lock, a site, a small wheel."""

from __future__ import annotations

import base64
import hashlib
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lean.transfer.channel import Refused
from lean.transfer.stage import Stage
from remote.console import Console
from remote.host.python import HostPython
from remote.host.site import LiveSite

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


def lock_is_free(target: Path) -> bool:
    """Whether nobody on the host, which is this machine, writes the target now."""
    try:
        with Stage(str(target), who="a test", private=True):
            return True
    except Refused:
        return False


def site_on(connection: Any) -> LiveSite:
    """A `LiveSite` with this checkout as its release and the tests' interpreter."""
    python = HostPython(release=str(REPO), python=sys.executable)
    return LiveSite(Console(), connection, python, connection.host.root)


def wheel(
    folder: Path, name: str, version: str, tag: str = "py3-none-any", needs: Sequence[str] = ()
) -> None:
    """The smallest wheel there is (PEP 427): one module, METADATA, WHEEL, RECORD."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    lines = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text)}\n")
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "".join(lines) + f"{info}/RECORD,,\n")
