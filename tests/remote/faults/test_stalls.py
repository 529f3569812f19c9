"""A link that still acknowledges and delivers nothing: an error within the deadline, no thread left."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO, until

from lean.errors import UnreachableError
from remote.host.jobs import HostJobs
from remote.host.python import HostPython
from remote.ssh.forward import Forward

STALL_S = 1.5
PATIENCE_S = 12.0  # the transfers wait twice the stall timeout, and closing takes its time


def stalled(any_host: Any, faulty_link: Any, tmp_path: Path) -> tuple[Any, Any]:
    link = faulty_link(any_host.port)
    connection = any_host.through(link.port, tmp_path / "config").connect(stall_timeout=STALL_S)
    connection.run(["true"])
    return link, connection


def our_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("ssh-", "forward", "relay"))]


@pytest.mark.slow
@pytest.mark.fault("link stalls and still acknowledges")
def test_a_stalled_copy_ends_within_its_deadline(
    any_host: Any, faulty_link: Any, work: Any, tmp_path: Path, no_strays: None
) -> None:
    link, connection = stalled(any_host, faulty_link, tmp_path)
    link.stall_after(work.size // 2)
    started = time.monotonic()
    with pytest.raises(UnreachableError):
        work.run(connection)
    assert link.carried >= work.size // 2 and link.stalled, "the fault did not fire"
    assert time.monotonic() - started < PATIENCE_S + 10
    assert work.untouched()
    connection.close()
    link.flow()
    work.run(any_host.connect())
    assert work.whole()


@pytest.mark.fault("link stalls and still acknowledges", "channel open")
def test_a_channel_on_a_stalled_link_ends_within_its_deadline(
    any_host: Any, faulty_link: Any, tmp_path: Path
) -> None:
    link, connection = stalled(any_host, faulty_link, tmp_path)
    link.stall()
    started = time.monotonic()
    with pytest.raises(UnreachableError):
        connection.open_channel("direct-tcpip", ("127.0.0.1", 9))
    assert time.monotonic() - started < PATIENCE_S
    connection.close()
    assert our_threads() == []


@pytest.mark.fault("link stalls and still acknowledges", "forward")
def test_a_forward_over_a_stalled_link_fails_and_leaves_no_thread(
    any_host: Any, faulty_link: Any, tmp_path: Path
) -> None:
    link, connection = stalled(any_host, faulty_link, tmp_path)
    with (
        socket.create_server(("127.0.0.1", 0)) as service,
        Forward(connection, service.getsockname()[1]) as forward,
    ):
        link.stall()
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", forward.port), timeout=PATIENCE_S) as client:
            client.sendall(b"anybody?")
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""  # closed or reset, not hanging
        assert time.monotonic() - started < PATIENCE_S
        until(lambda: forward.failure is not None, within_s=PATIENCE_S)
        assert isinstance(forward.failure, UnreachableError)
    connection.close()
    assert our_threads() == []


@pytest.mark.fault("link down while a job runs", "jobs")
def test_a_job_goes_on_while_the_link_sleeps_and_is_found_again(
    any_host: Any, faulty_link: Any, tmp_path: Path
) -> None:
    link, connection = stalled(any_host, faulty_link, tmp_path)
    python = HostPython(release=str(REPO), python=sys.executable)
    jobs = HostJobs(connection, python)
    go, lines = tmp_path / "go", []
    words = f"echo one >&2; while [ ! -e '{go}' ]; do sleep 0.05; done; echo two >&2; echo '{{}}'"

    def sleep_after(line: str) -> None:
        lines.append(line)
        link.stall()

    jobs.start("long", ["sh", "-c", words])
    started = time.monotonic()
    with pytest.raises(UnreachableError, match=r"Job 'long' goes on without us\. Re-attach:"):
        jobs.follow("long", sleep_after)
    assert link.stalled and lines == ["one"], "the fault did not fire"
    assert time.monotonic() - started < PATIENCE_S
    go.touch()
    link.flow()
    end = HostJobs(any_host.connect(), python).follow("long", lines.append)
    assert end.status.state == "exited" and lines == ["one", "one", "two"]
    connection.close()
