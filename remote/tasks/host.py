"""Reaching a host and keeping it in order: the embedded one, doctor, bootstrap, sync, push, pull, jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from invoke import Exit

from remote.console import Console, size
from remote.tasks.verb import exit_with, verb

if TYPE_CHECKING:
    from remote.ssh.connection import HostConnection
    from remote.transfer.copy import Progress

REPLACE = "a folder at the target may lose what the source does not hold"


@verb()
def up(console: Console) -> None:
    """Start the embedded host `loopback`: an SSH server on 127.0.0.1 with keys of its own."""
    from remote.loopback import control

    console.result(asdict(control.ensure_up()))


@verb()
def down(console: Console) -> None:
    """Stop the embedded host. Detached jobs on it go on."""
    from remote.loopback import control

    console.result({"stopped": control.down()})


@verb(several=True)
def doctor(console: Console, host: str | None = None) -> None:
    """Examine a host: how it is reached, what its contract needs of it, each gap with its fix."""
    from lean.contracts import load_contract
    from remote.host.doctor import examine

    with connected(host) as connection:
        report = examine(connection, load_contract(connection.host.contract))

    def show() -> None:
        state = {(True, True): "ok", (True, False): "ok", (False, True): "MISSING", (False, False): "note"}
        rows = [(r.what, r.need, r.have, state[r.ok, r.required], r.fix) for r in report.rows]
        console.table(
            ("what", "need", "have", "", "fix"), rows, title=f"{report.host}: {report.address or 'unknown'}"
        )

    console.result(asdict(report) | {"ok": report.ok, "exit_code": report.exit_code}, show)
    if not report.ok:
        raise Exit(code=report.exit_code)


@verb(several=True)
def bootstrap(console: Console, host: str | None = None, dry_run: bool = False) -> None:
    """Make the host's folders and its virtual environment; a no-op where they are there."""
    from remote.host.site import open_site

    with open_site(console, host, dry_run=dry_run) as site:
        site.result({"host": site.name, "root": site.paths.root, "release": site.release})


@verb(several=True)
def sync(console: Console, host: str | None = None, dry_run: bool = False) -> None:
    """Copy this checkout's files, tracked and not ignored, into `releases/<id>` on the host."""
    from remote.paths import REPOSITORY
    from remote.transfer.release import read_release
    from remote.transfer.sync import sync

    connection = connected(host)
    if dry_run:
        release = read_release(REPOSITORY)
        total = sum(entry.size for entry in release.source.listing())
        target = f"{connection.name}:{connection.host.root}/releases/{release.id}"
        console.result({"target": target, "files": len(release.files), "bytes": total})
        return
    with connection:
        done = sync(connection)
    console.result(
        {
            "release": done.release.id,
            "path": done.path,
            "dirty": done.release.dirty,
            "files": len(done.release.files),
            "sent": done.sent,
            "unchanged": done.unchanged,
            "seconds": done.seconds,
        }
    )


@verb(
    several=True,
    source="a file or folder here",
    target="an absolute path on the host, the copy's own name",
    replace=REPLACE,
)
def push(
    console: Console,
    source: str,
    target: str,
    host: str | None = None,
    replace: bool = False,
    dry_run: bool = False,
) -> None:
    """Copy a file or folder to the host, verified on both ends; a rerun resumes."""
    from remote.transfer import copy

    if dry_run:
        files, total = copy.measure(Path(source))
        console.result({"target": f"{connected(host).name}:{target}", "files": files, "bytes": total})
        return
    with connected(host) as connection:
        done = copy.push(connection, Path(source), target, replace=replace, on_progress=progress(console))
        console.result(asdict(done))


@verb(source="an absolute path on the host", target="a path here, the copy's own name", replace=REPLACE)
def pull(
    console: Console,
    source: str,
    target: str,
    host: str | None = None,
    replace: bool = False,
    dry_run: bool = False,
) -> None:
    """Copy a file or folder from the host, with the same guarantees as push."""
    from remote.transfer import copy

    if dry_run:
        console.result(
            {"source": f"{connected(host).name}:{source}", "target": target, "bytes": "known there"}
        )
        return
    with connected(host) as connection:
        done = copy.pull(connection, source, Path(target), replace=replace, on_progress=progress(console))
        console.result(asdict(done))


@verb(
    several=True,
    follow="show this job's log until it ends; Ctrl-C detaches and the job goes on",
    stop="stop this job",
    clean="remove finished jobs and their logs",
)
def jobs(
    console: Console,
    host: str | None = None,
    follow: str | None = None,
    stop: str | None = None,
    clean: bool = False,
    dry_run: bool = False,
) -> None:
    """Show what runs on the host, detached from any connection; follow, stop or clean it.

    Following a measurement that nobody waited for ends with the command that brings its record home.
    """
    from remote.appliance.kept import pull_command
    from remote.host.site import live_site, open_site

    if dry_run:
        asked = ("tail", follow) if follow else ("stop", stop) if stop else ("clean",) if clean else ("list",)
        with open_site(console, host, dry_run=True) as dry:
            dry.call("lean.jobs", asked[0], "--root", dry.paths.root, *asked[1:])
        return
    with live_site(console, host, environment=False) as site:
        if follow:
            end = site.jobs.follow(follow, console.line)
            pull = pull_command(site.name, end.result, Path("results"))
            console.result({"status": end.status.document(), "result": end.result, "pull": pull})
            if pull is not None:
                console.line(f"its record is not here yet; run: {pull}")
            failure = end.failure(site.name)
            if failure is not None:
                raise exit_with(failure)
        elif stop:
            console.result(site.jobs.stop(stop).document())
        elif clean:
            console.result({"removed": list(site.jobs.clean())})
        else:
            found = site.jobs.list()
            rows = [(j.name, j.state, j.pid or "-", j.started, j.ended or "-", j.log) for j in found]
            columns = ("job", "state", "pid", "started", "ended", "log")
            console.result({"jobs": [j.document() for j in found]}, lambda: console.table(columns, rows))


def connected(host: str | None) -> HostConnection:
    """A connection to the chosen host, opened on first use."""
    from remote.host.hosts import load_host
    from remote.ssh.connection import HostConnection

    return HostConnection(*load_host(host))


def progress(console: Console) -> Callable[[Progress], None]:
    """A line for every tenth of a transfer: bytes, rate, time left."""
    shown = -1

    def report(now: Progress) -> None:
        nonlocal shown
        tenth = now.done * 10 // now.total if now.total else 10
        if tenth > shown:
            shown = tenth
            left = f", {now.eta_s:.0f} s left" if now.eta_s is not None else ""
            console.line(f"{size(now.done)} of {size(now.total)}, {size(now.rate)}/s{left}")

    return report
