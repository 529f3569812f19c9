"""The embedded server's life: up, up again, down, and every stale or hostile state in between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from helpers import until

from lean.contracts import Host
from lean.errors import AuthError, LeanError, NotReadyError, PreflightError
from lean.jobs.process import start_ticks
from remote.loopback import control as loopback
from remote.loopback.server import Running, _Session, is_loopback, session_environment
from remote.paths import REPOSITORY
from remote.ssh.connection import HostConnection
from remote.ssh.settings import SshSettings


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    own = SshSettings(loopback=tmp_path / "loop back", connect_timeout=5, stall_timeout=6)
    yield own
    loopback.down(own.loopback)


def connect(settings: SshSettings) -> HostConnection:
    return HostConnection("loopback", Host(contract="tiny-cpu"), settings)


def run_in_thread(connection: HostConnection, script: str) -> tuple[threading.Thread, list[LeanError]]:
    """Start a command that is not expected to end well; the list gets its error."""
    failures: list[LeanError] = []

    def body() -> None:
        try:
            connection.run(["sh", "-c", script])
        except LeanError as error:
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, failures


def test_the_first_command_starts_the_server(settings: SshSettings) -> None:
    assert not loopback.status(settings.loopback).running

    with connect(settings) as connection:
        assert connection.run(["echo", "up"]).stdout == "up\n"

    assert loopback.status(settings.loopback).running


def test_up_twice_is_one_server(settings: SshSettings) -> None:
    first = loopback.ensure_up(settings.loopback)

    assert loopback.ensure_up(settings.loopback) == first


def test_down_stops_it_and_up_keeps_port_and_keys(settings: SshSettings) -> None:
    first = loopback.ensure_up(settings.loopback)
    keys = {path.name: path.read_text() for path in settings.loopback.glob("*_ed25519*")}
    assert len(keys) == 4

    assert loopback.down(settings.loopback) is True
    assert not loopback.status(settings.loopback).running
    assert start_ticks(first.pid or 0) is None
    assert loopback.down(settings.loopback) is False

    second = loopback.ensure_up(settings.loopback)
    assert second.port == first.port
    assert second.pid != first.pid
    assert keys == {path.name: path.read_text() for path in settings.loopback.glob("*_ed25519*")}


def test_down_where_nothing_ever_ran_makes_nothing(tmp_path: Path) -> None:
    assert loopback.down(tmp_path / "never") is False

    assert not (tmp_path / "never").exists()


def test_a_connection_survives_down_and_up(settings: SshSettings) -> None:
    with connect(settings) as connection:
        connection.run(["true"])
        loopback.down(settings.loopback)

        assert connection.run(["echo", "again"]).stdout == "again\n"


@pytest.mark.fault("two at once", "embedded host")
def test_many_starts_at_once_are_one_server(settings: SshSettings) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from remote.loopback import control\n"
        "print(control.ensure_up(Path(sys.argv[1])).pid)"
    )
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(settings.loopback)], cwd=REPOSITORY, stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]
    pids = {starter.communicate(timeout=60)[0].strip() for starter in starters}

    assert pids == {str(loopback.status(settings.loopback).pid).encode()}


@pytest.mark.fault("kill -9 of the server", "embedded host")
def test_a_killed_server_is_noticed_and_replaced(settings: SshSettings) -> None:
    first = loopback.ensure_up(settings.loopback)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: start_ticks(first.pid or 0) is None)

    assert not loopback.status(settings.loopback).running
    second = loopback.ensure_up(settings.loopback)
    assert (second.running, second.port) == (True, first.port)


@pytest.mark.fault("pid reused by a stranger", "embedded host")
def test_a_reused_pid_is_never_signalled(settings: SshSettings) -> None:
    loopback.ensure_up(settings.loopback)
    loopback.down(settings.loopback)
    stranger = subprocess.Popen(["sleep", "30"])
    try:
        stale = {"pid": stranger.pid, "identity": "another boot:1", "port": 1}
        (settings.loopback / "state.json").write_text(json.dumps(stale))

        assert not loopback.status(settings.loopback).running
        assert loopback.down(settings.loopback) is False
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}', "null"])
def test_a_broken_state_file_counts_as_not_running(settings: SshSettings, text: str) -> None:
    settings.loopback.mkdir()
    (settings.loopback / "state.json").write_text(text)

    assert not loopback.status(settings.loopback).running
    assert loopback.ensure_up(settings.loopback).running


def test_a_busy_port_is_named_with_the_way_out(settings: SshSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings.loopback.mkdir()
        port = other.getsockname()[1]
        (settings.loopback / "port").write_text(f"{port}\n")

        with pytest.raises(
            PreflightError, match=rf"port {port} .* is taken by another program.*delete .*/port"
        ):
            loopback.ensure_up(settings.loopback)

    assert not loopback.status(settings.loopback).running
    (settings.loopback / "port").unlink()
    assert loopback.ensure_up(settings.loopback).running


def test_a_server_that_cannot_start_points_at_its_log(settings: SshSettings) -> None:
    settings.loopback.mkdir()
    for name in ("host_ed25519", "host_ed25519.pub"):
        (settings.loopback / name).write_text("ssh-ed25519 not-a-key\n")

    with pytest.raises(PreflightError, match=r"did not start; its log is .*server\.log"):
        loopback.ensure_up(settings.loopback)


@pytest.mark.security("services and forwards listen on loopback only")
def test_it_listens_on_127_0_0_1_only(settings: SshSettings) -> None:
    status = loopback.ensure_up(settings.loopback)
    assert status.port is not None

    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) == status.port
    ]

    assert listening == [f"0100007F:{status.port:04X}"]


@pytest.mark.security("files are 0600 and folders 0700")
def test_its_directory_and_keys_are_private(settings: SshSettings) -> None:
    loopback.ensure_up(settings.loopback)

    assert stat.S_IMODE(settings.loopback.stat().st_mode) == 0o700
    for name in ("host_ed25519", "user_ed25519", "state.json", "ssh_config", "known_hosts"):
        assert stat.S_IMODE((settings.loopback / name).stat().st_mode) == 0o600, name


def test_only_its_own_user_and_key_get_in(settings: SshSettings, tmp_path: Path) -> None:
    loopback.ensure_up(settings.loopback)
    config = (settings.loopback / "ssh_config").read_text()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    attempts = {
        "key": config.replace(f'"{settings.loopback}/user_ed25519"', str(tmp_path / "other")),
        "user": config.replace("User lean", "User root"),
    }

    for name, text in attempts.items():
        assert text != config
        (tmp_path / name).write_text(text)
        host = Host(contract="tiny-cpu", hostname=loopback.ALIAS)
        with (
            HostConnection(name, host, SshSettings(ssh_config=tmp_path / name)) as connection,
            pytest.raises(AuthError, match="refused"),
        ):
            connection.run(["true"])


@pytest.mark.parametrize(
    "asked", [[], ["-tt", "true"], ["-s", "sftp"]], ids=["shell", "terminal", "subsystem"]
)
def test_it_runs_commands_and_nothing_else(embedded_host: Any, asked: list[str]) -> None:
    *options, destination = embedded_host.connect().openssh()
    flags, command = (asked[:1], asked[1:]) if asked else ([], [])

    answer = subprocess.run(
        [*options[:-1], "-o", "RequestTTY=auto", *flags, "--", destination, *command],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=20,
    )

    if flags == ["-tt"]:
        assert b"PTY allocation request failed" in answer.stderr
    else:
        assert answer.returncode != 0


def test_it_forwards_to_this_machine_only(embedded_host: Any) -> None:
    connection = embedded_host.connect()

    with pytest.raises(NotReadyError, match="refuses"):
        connection.open_channel("direct-tcpip", ("192.0.2.1", 80))


def test_loopback_addresses_are_told_from_others() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "::", "localhost.evil", "", "1"))


def test_down_ends_running_commands_and_spares_detached_jobs(settings: SshSettings, tmp_path: Path) -> None:
    script = (
        f"setsid sh -c 'echo $$ > {tmp_path}/job; exec sleep 30' </dev/null >/dev/null 2>&1 & "
        f"echo $$ > {tmp_path}/command; sleep 30; true"
    )
    with connect(settings) as connection:
        thread, failures = run_in_thread(connection, script)
        for name in ("job", "command"):
            until(lambda name=name: (tmp_path / name).exists() and (tmp_path / name).read_text().strip())
        job, command = (int((tmp_path / name).read_text()) for name in ("job", "command"))

        loopback.down(settings.loopback)
        thread.join(10)

    try:
        assert failures
        assert start_ticks(command) is None
        assert start_ticks(job) is not None
    finally:
        os.kill(job, signal.SIGKILL)


def test_a_command_that_ignores_sigterm_is_killed(settings: SshSettings, tmp_path: Path) -> None:
    script = f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 1; done"
    with connect(settings) as connection:
        thread, failures = run_in_thread(connection, script)
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())

        loopback.down(settings.loopback)
        thread.join(10)

    assert failures
    until(lambda: start_ticks(int((tmp_path / "pid").read_text())) is None)


def test_a_command_that_was_just_being_started_ends_with_the_server(tmp_path: Path) -> None:
    async def start_and_stop() -> int:
        running = Running(tmp_path, {"PATH": os.defpath})
        session = _Session(running)
        session.connection_made(MagicMock())
        session.exec_requested("trap '' TERM; while :; do sleep 1; done")
        session.session_started()
        await asyncio.sleep(0)  # the start has begun, and no group is known
        assert not running.groups
        await running.stop()
        assert session._child is not None
        pid = int(session._child.transport.get_pid() or 0)
        session._child.transport.close()
        return pid

    pid = asyncio.run(start_and_stop())
    assert pid and start_ticks(pid) is None


@pytest.mark.security("no secret in an environment that does not need it")
def test_sessions_get_their_home_and_no_secrets(tmp_path: Path) -> None:
    environ = {
        "HOME": str(tmp_path),
        "PATH": "/bin",
        "LANG": "C.UTF-8",
        "PIP_INDEX_URL": "https://mirror.example/simple",
        "https_proxy": "http://proxy:3128",
        "HF_TOKEN": "canary",
        "AWS_SECRET_ACCESS_KEY": "canary",
        "PIP_API_KEY": "canary",
        "SSH_AUTH_SOCK": "/canary",
        "PYTHONPATH": "/canary",
    }
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").touch()

    made = session_environment(environ, Path("/new home"))

    assert "canary" not in " ".join(made.values())
    assert made["HOME"] == "/new home"
    assert made["PATH"] == "/bin"
    assert made["XDG_CACHE_HOME"] == f"{tmp_path}/.cache"
    assert made["PIP_CONFIG_FILE"] == f"{tmp_path}/.config/pip/pip.conf"
    assert made["PIP_INDEX_URL"] == "https://mirror.example/simple"
    assert made["https_proxy"] == "http://proxy:3128"


def test_the_status_program_prints_one_json_document() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "remote.loopback", "status"], cwd=REPOSITORY, capture_output=True, check=True
    )

    assert set(json.loads(answer.stdout)) == {"directory", "running", "pid", "port"}


def test_a_process_is_told_from_its_successor() -> None:
    child = subprocess.Popen(["sleep", "30"])
    identity = start_ticks(child.pid)
    assert identity is not None
    assert identity == start_ticks(child.pid)
    assert identity != start_ticks(os.getpid())

    child.kill()
    until(lambda: start_ticks(child.pid) is None)  # a zombie by now, not reaped yet
    child.wait()
    assert start_ticks(child.pid) is None
