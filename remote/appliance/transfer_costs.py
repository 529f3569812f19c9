"""What copies cost beside their peers, in turn, every sample kept.

Each peer gives the same guarantee as ours: rsync, then sha256sum on both ends, then sync. What gives less
(rsync alone, scp, ssh cat) is shown beside as a ceiling, and limits nothing.
"""

from __future__ import annotations

import os
import random
import resource
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from lean.errors import LeanError, PreflightError
from remote.appliance.costs import page, record_head, where_and_when, write_record
from remote.appliance.range_server import serving
from remote.appliance.relay import RelayRequest, relay
from remote.host.site import LiveSite
from remote.ssh.command import command_line
from remote.ssh.connection import HostConnection
from remote.transfer.copy import pull, push

MIB = 1 << 20
TREE_FILES, TREE_BYTES = 2000, 4096
LIMITS = {"push": 1.1, "pull": 1.1, "tree": 1.5, "relay": 1.15}
SCHEMA = "transfers/v1"


def write_transfers(record: Mapping[str, Any], results: Path) -> Path:
    """Keep the record with a page for people, as `costs` does. Errors: `UsageError` when it exists."""
    title = f"What copies cost, {record['taken']}"
    resident = ", ".join(f"{what} {mib:.0f} MiB" for what, mib in record["resident_mib"].items())
    intro = (
        f"{where_and_when(record)} One file of {record['file_mib']} MiB and a tree of "
        f"{record['tree']['files']} files of {record['tree']['bytes_each']} bytes, all random. Medians of "
        "runs in turn; every sample is in the record. The ratio is that of the medians, in brackets the "
        "least and greatest of the pairs. The file's peer gives the same guarantee: rsync, sha256sum on both "
        "ends, sync; the tree's is rsync alone. A relay is held against the slower of its legs alone: curl "
        f"with sha256sum, and our push. The most memory resident: {resident}."
    )
    return write_record(record, "transfers", results, page(title, intro, COLUMNS, record["rows"]))


def measure_transfers(site: LiveSite, folder: Path, *, rounds: int, mib: int) -> dict[str, Any]:
    """Ours and the peers' seconds, in turn, after one round that does not count.

    `folder`: a scratch folder here; `mib`: size of the one file.

    Errors: `PreflightError` without rsync, those of the copies.
    """
    if shutil.which("rsync") is None:
        raise PreflightError("no rsync on this machine, and it is the peer; install rsync")
    head = record_head(SCHEMA, site.name)
    bench = _Bench(site, folder, mib)
    bench.make()
    cases: dict[str, dict[str, Callable[[], None]]] = {
        "push": {
            "ours": bench.push_file,
            "peer": bench.rsync_push_guaranteed,
            "rsync alone": bench.rsync_push,
            "scp": bench.scp,
            "ssh cat": bench.cat,
        },
        "pull": {
            "ours": bench.pull_file,
            "peer": bench.rsync_pull_guaranteed,
            "rsync alone": bench.rsync_pull,
        },
        "tree": {"ours": bench.push_tree, "peer": bench.rsync_tree},
        "relay": {"ours": bench.relay, "download": bench.download, "push": bench.push_file},
    }
    with serving(bench.file) as bench.url:
        found = {name: _in_turn(bench, name, runs, rounds) for name, runs in cases.items()}
    bench.clear()
    record: dict[str, Any] = {
        **head,
        "file_mib": mib,
        "tree": {"files": TREE_FILES, "bytes_each": TREE_BYTES},
        "samples": found,
        "resident_mib": {
            "this process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "largest child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        },
    }
    return record | {"rows": [list(row) for row in rows(record)]}


def _in_turn(
    bench: _Bench, name: str, runs: Mapping[str, Callable[[], None]], rounds: int
) -> dict[str, list[float]]:
    bench.site.console.phase(f"{name}: {', '.join(runs)}, in turn")
    samples: dict[str, list[float]] = {what: [] for what in runs}
    for turn in range(rounds + 1):
        for what, run in runs.items():
            bench.clear()
            started = time.perf_counter()
            run()
            if turn:  # the first does not count
                samples[what].append(time.perf_counter() - started)
    return samples


COLUMNS = ("what", "ours", "peer", "ratio", "kept")


def rows(record: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """A record by `COLUMNS`, the ratio of medians with the spread of the pairs, and the ceilings."""
    table = []
    for name, samples in record["samples"].items():
        ours = samples["ours"]
        if name == "relay":
            slower = max(("download", "push"), key=lambda leg: median(samples[leg]))
            peer, label = samples[slower], f"slower leg ({slower})"
        else:
            peer, label = samples["peer"], "rsync" if name == "tree" else "rsync, sha256sum twice, sync"
        ratios = sorted(a / b for a, b in zip(ours, peer, strict=True))
        ratio = median(ours) / median(peer)
        told = f"{ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), limit {LIMITS[name]}"
        kept = "yes" if ratio <= LIMITS[name] else "no"
        table.append((name, f"{median(ours):.2f} s", f"{label} {median(peer):.2f} s", told, kept))
        for what in ("rsync alone", "scp", "ssh cat"):
            if what in samples:
                table.append((f"  ceiling: {what}", "", f"{median(samples[what]):.2f} s", "", ""))
    return table


class _Bench:
    """The copies and their peers, on one file and one tree of random bytes."""

    def __init__(self, site: LiveSite, folder: Path, mib: int) -> None:
        self.site, self._folder, self._mib, self.url = site, folder, mib, ""
        self._connection: HostConnection = site.connection
        self.file, self.tree, self.back = folder / "file", folder / "tree", folder / "back"
        self._there = f"{site.paths.root}/tmp/transfers"
        self._ssh = [*self._connection.openssh()]
        self._shell = shlex.join(self._connection.openssh("rsync"))
        self._destination = self._connection.resolved.destination

    def make(self) -> None:
        """The sources, and the file on the host for the pulls."""
        made = random.Random(20261121)
        self.tree.mkdir(parents=True, exist_ok=True)
        if not self.file.exists() or self.file.stat().st_size != self._mib * MIB:
            with self.file.open("wb") as file:
                for _ in range(self._mib):
                    file.write(made.randbytes(MIB))
        for number in range(TREE_FILES):
            path = self.tree / f"{number % 40:02d}" / f"{number:04d}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(made.randbytes(TREE_BYTES))
        self._remote("mkdir", "-p", self._there)
        push(self._connection, self.file, f"{self._there}/source")

    def clear(self) -> None:
        """Nothing at any target, and nothing left to write from the run before."""
        self._remote("rm", "-rf", *(f"{self._there}/{name}" for name in ("file", "tree", "relayed")))
        self.back.unlink(missing_ok=True)
        os.sync()
        self._remote("sync")

    def push_file(self) -> None:
        push(self._connection, self.file, f"{self._there}/file")

    def pull_file(self) -> None:
        pull(self._connection, f"{self._there}/source", self.back)

    def push_tree(self) -> None:
        push(self._connection, self.tree, f"{self._there}/tree")

    def rsync_push(self) -> None:
        self._rsync(str(self.file), f"{self._destination}:{self._there}/file")

    def rsync_push_guaranteed(self) -> None:
        self.rsync_push()
        _run(["sha256sum", "--", str(self.file)])
        self._remote("sha256sum", "--", f"{self._there}/file")
        self._remote("sync", f"{self._there}/file")

    def rsync_pull(self) -> None:
        self._rsync(f"{self._destination}:{self._there}/source", str(self.back))

    def rsync_pull_guaranteed(self) -> None:
        self.rsync_pull()
        _run(["sha256sum", "--", str(self.back)])
        self._remote("sha256sum", "--", f"{self._there}/source")
        _run(["sync", str(self.back)])

    def rsync_tree(self) -> None:
        self._rsync("-r", f"{self.tree}/", f"{self._destination}:{self._there}/tree/")

    def scp(self) -> None:
        options = self._connection.openssh("rsync")[1:]
        _run(["scp", "-O", "-q", *options, "--", str(self.file), f"{self._destination}:{self._there}/file"])

    def cat(self) -> None:
        line = command_line(["dd", f"of={self._there}/file", "bs=1M", "status=none"])
        with self.file.open("rb") as source:
            _run([*self._ssh, line], stdin=source.fileno())

    def relay(self) -> None:
        request = RelayRequest(url=self.url, target=f"{self._there}/relayed")
        relay(self.site, request, state=self._folder)

    def download(self) -> None:
        _run(["curl", "-sS", "--fail", "-o", str(self.back), "--", self.url])
        _run(["sha256sum", "--", str(self.back)])

    def _rsync(self, *words: str) -> None:
        _run(["rsync", "-t", "-e", self._shell, *words])

    def _remote(self, *argv: str) -> None:
        _run([*self._ssh, command_line(argv)])


def _run(argv: list[str], stdin: int = subprocess.DEVNULL) -> None:
    done = subprocess.run(argv, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise LeanError(f"{argv[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
