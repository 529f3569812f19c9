"""The checkout onto the host, exactly, as `releases/<id>`.

A release that is whole there costs one round trip.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from remote.paths import REPOSITORY
from remote.ssh.connection import HostConnection
from remote.transfer.copy import Progress, push_source
from remote.transfer.far_end import carried_argv
from remote.transfer.release import Release, read_release


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """A release on a host. `path` is absolute there. `sent` in bytes; `unchanged`: it was whole already.

    `root` is the host's root, as the host resolved it.
    """

    release: Release
    path: str
    root: str
    unchanged: bool
    sent: int
    seconds: float


def sync(
    connection: HostConnection,
    repo: Path = REPOSITORY,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> Sync:
    """Bring this checkout to the host. Equal files of the newest earlier release are hard-linked there.

    The whole release is checked by hash on the host even when nothing is sent. Errors: `PreflightError` (no
    git checkout, a likely secret, disk space), `TransferError` (a file changed meanwhile),
    `UnreachableError`.
    """
    started = time.monotonic()
    release = read_release(repo)
    argv = carried_argv(connection.host.python, "release", connection.host.root, release.id)
    state = connection.run_json(argv)
    path, previous = str(state["path"]), str(state["previous"])
    sent = 0
    if not state["complete"]:
        source = replace(release.source, added={"release.json": release.document()})
        basis = (previous,) if previous else ()
        sent = push_source(
            connection, source, path, basis=basis, replace=True, method="chunks", on_progress=on_progress
        ).sent
    return Sync(
        release=release,
        path=path,
        root=str(state["root"]),
        unchanged=bool(state["complete"]),
        sent=sent,
        seconds=time.monotonic() - started,
    )
