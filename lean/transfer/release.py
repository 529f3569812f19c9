"""Whether a release on the host is whole.

Every file of its `release.json` is there, with its bytes, and no other.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

MARK = "release.json"
RUN_LEFT = "__pycache__"  # what running the release writes into it


def release_state(root: str, release: str) -> dict[str, Any]:
    """`{"root", "path", "complete", "previous"}` for the release id below the host's root.

    `root` may begin with `~`; what comes back is absolute.
    `previous`: the newest other release, from which equal files can be linked, or an empty string.
    """
    root = os.path.normpath(os.path.expanduser(root))
    releases = os.path.join(root, "releases")
    path = os.path.join(releases, release)
    return {
        "root": root,
        "path": path,
        "complete": _complete(path, release),
        "previous": _newest(releases, release),
    }


def _complete(path: str, release: str) -> bool:
    mark = _mark(path)
    if mark is None or mark.get("id") != release:
        return False
    listed: dict[str, str] = mark["files"]
    if set(_files(path)) != set(listed) | {MARK}:
        return False
    return all(content_sha256(os.path.join(path, name)) == sha256 for name, sha256 in listed.items())


def _mark(path: str) -> dict[str, Any] | None:
    try:
        with open(os.path.join(path, MARK), encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and isinstance(document.get("files"), dict) else None


def _files(path: str) -> list[str]:
    found = []
    for folder, folders, files in os.walk(path):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = [name for name in folders if name != RUN_LEFT and name not in links]
        found += [os.path.relpath(os.path.join(folder, name), path) for name in files + links]
    return found


def content_sha256(path: str) -> str:
    """sha256 of a file's bytes, or of where a link points; empty when it cannot be read."""
    try:
        if os.path.islink(path):
            return hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""


def _newest(releases: str, but: str) -> str:
    marks = []
    for name in os.listdir(releases) if os.path.isdir(releases) else ():
        mark = os.path.join(releases, name, MARK)
        if name != but and not name.startswith(".") and os.path.exists(mark):
            marks.append((os.stat(mark).st_mtime_ns, os.path.dirname(mark)))
    return max(marks)[1] if marks else ""
