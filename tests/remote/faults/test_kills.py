"""kill -9 of the server's child and of the client, at every step: a rerun converges, no lock is stuck."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO

from lean.errors import LeanError

MIB = 1 << 20


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


@pytest.mark.fault("kill -9 of the server's child")
@pytest.mark.parametrize(
    "percent", [pytest.param(1, marks=pytest.mark.slow), 50, pytest.param(99, marks=pytest.mark.slow)]
)
def test_a_killed_far_end_is_an_error_and_the_next_copy_is_whole(
    any_host: Any, faulty_link: Any, work: Any, percent: int, tmp_path: Path, no_strays: None
) -> None:
    link = faulty_link(any_host.port)
    connection = any_host.through(link.port, tmp_path / "config").connect()
    connection.run(["true"])
    killed: list[int] = []

    def kill() -> None:
        for pid in far_ends(any_host.pid):
            try:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            except ProcessLookupError:
                pass

    link.call_after(work.size * percent // 100, kill)
    try:
        work.run(connection)
    except LeanError as error:
        assert error.exit_code in (3, 8), error
        assert work.untouched() or work.whole()
    else:
        assert work.whole()  # everything was here already when its sender died
    assert killed, "the fault did not fire"
    connection.close()
    work.run(any_host.connect())
    assert work.whole()


CLIENT = """
import sys
from pathlib import Path
from lean.contracts import Host
from remote.ssh.connection import HostConnection
from remote.ssh.settings import SshSettings
from remote.transfer.copy import push, pull
kind, method, config, name, root, here, there = sys.argv[1:]
host = Host(contract="tiny-cpu", hostname=name, root=root)
connection = HostConnection("box", host, SshSettings(ssh_config=Path(config)))
if kind == "push":
    push(connection, Path(here), there, method=method)
else:
    pull(connection, there, Path(here), method=method)
"""


@pytest.mark.fault("kill -9 of the client")
@pytest.mark.parametrize("method", ["auto", "chunks"])
@pytest.mark.parametrize("kind", ["push", "pull"])
@pytest.mark.parametrize("percent", [pytest.param(n, marks=pytest.mark.slow) for n in (0, 30, 99)] + [70])
def test_a_killed_client_leaves_no_lock_and_the_next_copy_is_whole(
    any_host: Any, faulty_link: Any, place: Path, kind: str, method: str, percent: int, tmp_path: Path
) -> None:
    size, here, there = 24 * MIB, tmp_path / "here" / "f", place / "f"
    here.parent.mkdir()
    source, target = (here, there) if kind == "push" else (there, here)
    source.write_bytes(os.urandom(size))
    target.write_text("the old one")
    link = faulty_link(any_host.port)
    through = any_host.through(link.port, tmp_path / "config")
    argv = [sys.executable, "-c", CLIENT, kind, method, str(tmp_path / "config")]
    argv += [through.host.hostname, any_host.host.root, str(here), str(there)]
    struck = threading.Event()
    with subprocess.Popen(argv, cwd=REPO, stderr=subprocess.PIPE) as client:

        def kill() -> None:
            client.kill()
            struck.set()

        link.call_after(size * percent // 100 + 1, kill)
        client.communicate(timeout=60)
    assert struck.is_set() and client.returncode == -signal.SIGKILL, "the fault did not fire"
    assert target.read_bytes() in (b"the old one", source.read_bytes())
    deadline = time.monotonic() + 20
    while True:
        done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, timeout=60)
        if done.returncode == 0 or "is being written by" not in done.stderr:
            break
        assert time.monotonic() < deadline, "the lock is stuck"
        time.sleep(0.2)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == source.read_bytes()
