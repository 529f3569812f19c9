"""A host made ready: connected, this checkout's release on it, and the interpreter that runs the release.

Everything a verb asks of the appliance goes through here as argv, and comes back as one JSON document.
`DrySite` of `remote.host.dry_run` has the same face and only prints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lean.contracts import Host
from lean.errors import NotReadyError
from remote.console import Console, size
from remote.host.hosts import load_host
from remote.paths import STATE, HostPaths
from remote.ssh.command import plain_name

if TYPE_CHECKING:
    from lean.jobs.store import JobStatus
    from remote.host.jobs import JobEnd
    from remote.host.python import HostPython
    from remote.host.wheelhouse import Packages
    from remote.ssh.connection import HostConnection


class Site(Protocol):
    """What the operations need of a host."""

    console: Console
    name: str
    host: Host

    @property
    def paths(self) -> HostPaths: ...

    @property
    def release(self) -> str:
        """Path of the synced release on the host."""

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

    def runs(self, name: str) -> bool:
        """Whether a job of this name was started and has not ended, ready or not."""

    def stop(self, name: str, *, grace_s: float = 10.0) -> dict[str, Any]:
        """Stop a job: SIGTERM, a grace period, SIGKILL."""

    def push(self, source: Path, target: str) -> None:
        """Copy a file or folder of this machine to `target` on the host, verified, over what is there."""

    def pull(self, source: str, target: Path) -> None:
        """Copy a file or folder of the host to `target` on this machine, verified."""

    def packages(self, wanted: Packages, name: str, platform: Mapping[str, Any]) -> str:
        """Download packages here for a host of that platform, and have them there: the folder, by `name`."""

    def result(self, document: Mapping[str, Any], show: Callable[[], None] | None = None) -> None:
        """The verb's result, on the console; of a dry run the steps are the result instead."""


class LiveSite:
    """A connected host with the release synced and the environment bootstrapped."""

    def __init__(self, console: Console, connection: HostConnection, python: HostPython, root: str) -> None:
        from remote.host.jobs import HostJobs

        self.console = console
        self.connection = connection
        self.name, self.host = connection.name, connection.host
        self.python = python
        self.jobs = HostJobs(connection, python)
        self.release = python.release
        self.paths = HostPaths(root)

    def call(self, module: str, *arguments: str) -> dict[str, Any]:
        """See `Site`."""
        return self.connection.run_json(self.python.argv(module, *arguments))

    def job(self, name: str, module: str, *arguments: str) -> dict[str, Any]:
        """See `Site`."""
        return self._run_job(name, module, *arguments).document(self.name)

    def outcome(self, name: str, module: str, *arguments: str) -> dict[str, Any]:
        """See `Site`."""
        end = self._run_job(name, module, *arguments)
        if end.result is not None and set(end.result) - {"error"}:
            return end.result
        return end.document(self.name)

    def _run_job(self, name: str, module: str, *arguments: str) -> JobEnd:
        run = self.jobs.start_program(name, module, *arguments).run
        return self.jobs.follow(name, self.console.line, run=run)

    def service(
        self, name: str, module: str, *arguments: str, ready_file: str, timeout_s: float
    ) -> dict[str, Any]:
        """See `Site`."""
        started = self.jobs.start_program(name, module, *arguments)
        found: dict[str, Any] = {}

        def ready(status: JobStatus) -> bool:
            found.update(self.ready_document(ready_file, status) or {})
            return bool(found)

        try:
            self.jobs.wait_for(name, ready, timeout_s=timeout_s)
        except NotReadyError:
            now = self.jobs.status(name)
            if now.run == started.run and not now.finished:
                self.jobs.stop(name)  # too late is as good as never, and it would be in the next one's way
            elif now.run == started.run:
                self.jobs.follow(name, self.console.line, run=started.run).document(self.name)
            raise
        return found

    def ready(self, name: str, ready_file: str) -> dict[str, Any] | None:
        """See `Site`."""
        try:
            return self.ready_document(ready_file, self.jobs.status(name))
        except NotReadyError:
            return None

    def runs(self, name: str) -> bool:
        """See `Site`."""
        try:
            return not self.jobs.status(name).finished
        except NotReadyError:
            return False

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

    def push(self, source: Path, target: str) -> None:
        """See `Site`."""
        from remote.transfer.copy import push

        done = push(self.connection, source, target, replace=True)
        self.console.line(f"pushed {source}, {size(done.size)}, sha256 {done.sha256[:12]} on both ends")

    def pull(self, source: str, target: Path) -> None:
        """See `Site`."""
        from remote.transfer.copy import pull

        done = pull(self.connection, source, target)
        self.console.line(
            f"pulled {done.files} files, {size(done.size)}, sha256 {done.sha256[:12]} on both ends"
        )

    def packages(self, wanted: Packages, name: str, platform: Mapping[str, Any]) -> str:
        """See `Site`."""
        from remote.host.wheelhouse import read_platform, send_packages

        return send_packages(
            self.connection,
            wanted,
            read_platform(platform),
            here=STATE / "wheels" / plain_name("name", name),
            there=f"{self.paths.tmp}/wheels-{name}",
            on_line=self.console.line,
        )

    def result(self, document: Mapping[str, Any], show: Callable[[], None] | None = None) -> None:
        """See `Site`."""
        self.console.result(document, show)


@contextmanager
def open_site(
    console: Console, host: str | None, *, dry_run: bool, environment: bool = True
) -> Iterator[Site]:
    """`live_site`, or with `dry_run` one that only prints; its steps then are the verb's result."""
    if dry_run:
        from remote.host.dry_run import DrySite

        dry = DrySite(console, *load_host(host))
        yield dry
        console.result({"host": dry.name, "would": dry.steps}, lambda: None)
    else:
        with live_site(console, host, environment=environment) as site:
            yield site


@contextmanager
def live_site(console: Console, host: str | None, *, environment: bool = True) -> Iterator[LiveSite]:
    """A host with this checkout's release synced and its environment made, each a no-op where it is there.

    `environment` false: for verbs that only look at jobs, which the host's plain Python can. Errors: those of
    connecting, `sync` and `bootstrap`.
    """
    from remote.host.bootstrap import bootstrap
    from remote.host.python import HostPython
    from remote.ssh.connection import HostConnection
    from remote.transfer.sync import sync

    with HostConnection(*load_host(host)) as connection:
        release = sync(connection)
        if environment:
            python = bootstrap(connection, release, on_line=console.line).python
        else:
            python = HostPython(release=release.path, python=connection.host.python)
        yield LiveSite(console, connection, python, release.root)
