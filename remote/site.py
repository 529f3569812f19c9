"""A host made ready: connected, this checkout's release on it, and the interpreter that runs the release.

Everything a verb asks of the appliance goes through here as argv, and comes back as one JSON document.
`DrySite` of `remote.dry_run` has the same face and only prints.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lean.contracts import Host, load_hosts
from lean.errors import LeanError, NotReadyError, from_document
from remote.console import Console, size
from remote.paths import HostPaths
from remote.settings import REPOSITORY

if TYPE_CHECKING:
    from remote.connection import HostConnection
    from remote.host_python import HostPython
    from remote.jobs import JobStatus


class Site(Protocol):
    """What the operations need of a host."""

    console: Console
    name: str
    host: Host

    @property
    def paths(self) -> HostPaths: ...

    @property
    def release_file(self) -> str:
        """Path of the synced release's `release.json` on the host."""

    def call(self, module: str, *arguments: str) -> dict[str, Any]:
        """Run a short host program and return its document. Errors: its own."""

    def job(self, name: str, module: str, *arguments: str) -> dict[str, Any]:
        """Run a long host program as the detached job `name`, follow it, return its document."""

    def outcome(self, name: str, module: str, *arguments: str) -> dict[str, Any]:
        """`job`, but a document that holds a result beside its error is returned: the work left something."""

    def service(
        self, name: str, module: str, *arguments: str, ready_file: str, timeout_s: float
    ) -> dict[str, Any]:
        """Start a job that stays, and return the document it writes to `ready_file` once it is ready.

        Errors: `NotReadyError` when it ended or is not ready in time, with the end of its log.
        """

    def ready(self, name: str, ready_file: str) -> dict[str, Any] | None:
        """The document that the running job `name` wrote when it was ready; None when none runs or is."""

    def stop(self, name: str, *, grace_s: float = 10.0) -> dict[str, Any]:
        """Stop a job: SIGTERM, a grace period, SIGKILL."""

    def pull(self, source: str, target: Path) -> None:
        """Copy a file or folder of the host to `target` on this machine, verified."""


def load_host(name: str | None) -> tuple[str, Host]:
    """A host of this checkout by name, or its default one."""
    return load_hosts(REPOSITORY).get(name)


def default_contract() -> str:
    """The contract of the default host."""
    return load_host(None)[1].contract


def local_program(module: str, *arguments: str) -> dict[str, Any]:
    """Run `python -m module …` of this checkout on this machine and return its JSON document.

    Errors: the `LeanError` its error document describes.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=REPOSITORY, capture_output=True, text=True
    )
    try:
        document: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        reason = done.stderr.strip()[-300:]
        raise LeanError(f"python -m {module} ended with {done.returncode}: {reason}") from None
    if "error" in document:
        raise from_document(document)
    return document


class LiveSite:
    """A connected host with the release synced and the environment bootstrapped."""

    def __init__(self, console: Console, connection: HostConnection, python: HostPython, root: str) -> None:
        from remote.jobs import HostJobs

        self.console = console
        self.connection = connection
        self.name, self.host = connection.name, connection.host
        self.python = python
        self.jobs = HostJobs(connection, python)
        self.release_file = f"{python.release}/release.json"
        self.paths = HostPaths(root)

    def call(self, module: str, *arguments: str) -> dict[str, Any]:
        """See `Site`."""
        return self.connection.run_json(self.python.argv(module, *arguments))

    def job(self, name: str, module: str, *arguments: str) -> dict[str, Any]:
        """See `Site`."""
        return self.jobs.run_program(name, module, *arguments, on_line=self.console.line)

    def outcome(self, name: str, module: str, *arguments: str) -> dict[str, Any]:
        """See `Site`."""
        from remote.jobs import document_of

        run = self.jobs.start_program(name, module, *arguments).run
        end = self.jobs.follow(name, self.console.line, run=run)
        if end.result is not None and set(end.result) - {"error"}:
            return end.result
        return document_of(end, self.name)

    def service(
        self, name: str, module: str, *arguments: str, ready_file: str, timeout_s: float
    ) -> dict[str, Any]:
        """See `Site`."""
        from remote.jobs import document_of

        started = self.jobs.start_program(name, module, *arguments)
        found: dict[str, Any] = {}

        def ready(status: JobStatus) -> bool:
            found.update(self.ready_document(ready_file, status) or {})
            return bool(found)

        try:
            self.jobs.wait_for(name, ready, timeout_s=timeout_s)
        except NotReadyError:
            end = self.jobs.status(name)
            if end.finished:
                document_of(self.jobs.follow(name, self.console.line, run=started.run), self.name)
            raise
        return found

    def ready(self, name: str, ready_file: str) -> dict[str, Any] | None:
        """See `Site`."""
        try:
            return self.ready_document(ready_file, self.jobs.status(name))
        except NotReadyError:
            return None

    def ready_document(self, ready_file: str, status: JobStatus) -> dict[str, Any] | None:
        """What the running service wrote, None before it did. One that a predecessor left does not count."""
        read = self.connection.run(["cat", "--", ready_file], check=False)
        if read.exit_code != 0 or status.finished:
            return None
        document: dict[str, Any] = json.loads(read.stdout)
        return document if document.get("pid") == status.pid else None

    def stop(self, name: str, *, grace_s: float = 10.0) -> dict[str, Any]:
        """See `Site`."""
        return asdict(self.jobs.stop(name, grace_s=grace_s))

    def pull(self, source: str, target: Path) -> None:
        """See `Site`."""
        from remote.transfer import pull

        done = pull(self.connection, source, target)
        self.console.line(
            f"pulled {done.files} files, {size(done.size)}, sha256 {done.sha256[:12]} on both ends"
        )


@contextmanager
def open_site(console: Console, host: str | None, *, dry_run: bool) -> Iterator[Site]:
    """`live_site`, or with `dry_run` one that only prints; its steps then are the verb's result."""
    if dry_run:
        from remote.dry_run import DrySite

        dry = DrySite(console, *load_host(host))
        yield dry
        console.result({"host": dry.name, "would": dry.steps}, lambda: None)
    else:
        with live_site(console, host) as site:
            yield site


@contextmanager
def live_site(console: Console, host: str | None) -> Iterator[LiveSite]:
    """A host with this checkout's release synced and its environment made, each a no-op where it is there.

    Errors: those of connecting, `sync` and `bootstrap`.
    """
    from remote.bootstrap import bootstrap
    from remote.connection import HostConnection
    from remote.sync import sync

    with HostConnection(*load_host(host)) as connection:
        release = sync(connection)
        made = bootstrap(connection, release, on_line=console.line)
        yield LiveSite(console, connection, made.runs, release.root)
