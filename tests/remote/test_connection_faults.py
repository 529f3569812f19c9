"""Links that break, stall or never come up: always a typed error within its deadline, never a success."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from lean.contracts import Host
from lean.errors import UnreachableError
from remote.ssh.connection import HostConnection


def run_in_thread(connection: Any, argv: list[str], **options: Any) -> tuple[threading.Thread, list[Any]]:
    """Start a command; the list gets its result or its exception."""
    left: list[Any] = []

    def body() -> None:
        try:
            left.append(connection.run(argv, **options))
        except Exception as error:
            left.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, left


def wait_for_file(path: Path) -> None:
    tick = threading.Event()
    for _ in range(500):
        if path.exists():
            return
        tick.wait(0.02)
    raise AssertionError(f"{path} never came")


@pytest.mark.fault("link reset under a command", "run")
def test_a_link_cut_under_a_command_is_unknown_state_not_success(
    any_host: Any, faulty_link: Any, tmp_path: Path
) -> None:
    link = faulty_link(any_host.port)
    connection = any_host.through(link.port, tmp_path / "config").connect()
    started = tmp_path / "started"
    thread, left = run_in_thread(connection, ["sh", "-c", f"touch {started}; sleep 4; echo done"])
    wait_for_file(started)

    link.cut()
    thread.join(5)

    assert link.carried > 0
    assert isinstance(left[0], UnreachableError)
    assert "was lost; what runs there is unknown" in str(left[0])
    connection.close()


def test_after_a_cut_the_next_command_gets_a_new_link(
    any_host: Any, faulty_link: Any, tmp_path: Path
) -> None:
    link = faulty_link(any_host.port)
    connection = any_host.through(link.port, tmp_path / "config").connect()
    connection.run(["true"])
    thread, left = run_in_thread(connection, ["sleep", "4"])
    link.cut()
    thread.join(5)
    assert isinstance(left[0], UnreachableError)

    assert connection.run(["echo", "back"]).stdout == "back\n"
    connection.close()


@pytest.mark.fault("link stalls and still acknowledges", "run")
@pytest.mark.parametrize("stdin", [b"", bytes(16 << 20)], ids=["idle", "while sending"])
def test_a_stalled_link_that_still_acknowledges_ends_within_its_deadline(
    any_host: Any, faulty_link: Any, tmp_path: Path, stdin: bytes
) -> None:
    link = faulty_link(any_host.port)
    connection = any_host.through(link.port, tmp_path / "config").connect(stall_timeout=1.0)
    connection.run(["true"])
    carried = link.carried

    link.stall()
    thread, left = run_in_thread(connection, ["cat"], stdin=stdin)
    thread.join(5)

    assert carried > 0
    assert not thread.is_alive()
    assert isinstance(left[0], UnreachableError)
    connection.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ssh-")]


@pytest.mark.fault("link stalls and still acknowledges", "run")
def test_a_link_that_stalls_under_a_silent_command_ends_within_its_deadline(
    any_host: Any, faulty_link: Any, tmp_path: Path
) -> None:
    link = faulty_link(any_host.port)
    connection = any_host.through(link.port, tmp_path / "config").connect(stall_timeout=1.0)
    started = tmp_path / "started"
    thread, left = run_in_thread(connection, ["sh", "-c", f"touch {started}; sleep 6"])
    wait_for_file(started)

    link.stall()
    thread.join(5)

    assert isinstance(left[0], UnreachableError)
    connection.close()


def test_a_long_silent_command_outlives_the_watchdog(any_host: Any) -> None:
    result = any_host.connect(stall_timeout=0.6).run(["sh", "-c", "sleep 1.5; echo done"])

    assert result.stdout == "done\n"


def test_a_closed_port_is_unreachable_and_the_address_is_named(free_local_port: int) -> None:
    host = Host(contract="tiny-cpu", hostname="127.0.0.1", port=free_local_port)

    with (
        HostConnection("box", host) as connection,
        pytest.raises(
            UnreachableError, match=rf"box: 127\.0\.0\.1:{free_local_port}: Connection refused; is an SSH"
        ),
    ):
        connection.run(["true"])


def test_a_name_that_does_not_resolve_is_unreachable_and_a_fallback_suggested() -> None:
    host = Host(contract="tiny-cpu", hostname="no-such-host.invalid")

    with (
        HostConnection("box", host) as connection,
        pytest.raises(
            UnreachableError, match=r"no-such-host\.invalid:22: the name does not resolve .*fallback"
        ),
    ):
        connection.run(["true"])


def test_a_server_that_says_nothing_is_unreachable_within_the_banner_deadline(
    sshd_host: Any, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = sshd_host.through(silent.getsockname()[1], tmp_path / "config")

        with pytest.raises(UnreachableError, match="no SSH session came up"):
            mute.connect(handshake_timeout=0.4).run(["true"])


@pytest.mark.fault("link stalls and still acknowledges", "handshake")
def test_a_link_that_stalls_in_the_handshake_is_unreachable(
    any_host: Any, faulty_link: Any, tmp_path: Path
) -> None:
    link = faulty_link(any_host.port)
    link.stall()

    with pytest.raises(UnreachableError, match="no SSH session came up"):
        any_host.through(link.port, tmp_path / "config").connect(handshake_timeout=0.5).run(["true"])


def test_something_that_is_no_ssh_server_is_unreachable(sshd_host: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            client, _ = other.accept()
            with client:
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        wrong = sshd_host.through(other.getsockname()[1], tmp_path / "config")
        with pytest.raises(UnreachableError, match="is this the SSH port"):
            wrong.connect().run(["true"])
        thread.join()


def test_a_server_without_further_sessions_says_so(new_sshd: Any) -> None:
    host = new_sshd("strict", "MaxSessions 1")
    with host.connect() as connection:
        thread, left = run_in_thread(connection, ["sh", "-c", f"touch {host.home}/first; sleep 1"])
        wait_for_file(host.home / "first")

        with pytest.raises(UnreachableError, match="opens no further session"):
            connection.run(["true"])

        thread.join()
        assert left[0].exit_code == 0


def test_the_fallback_address_is_tried_when_the_first_does_not_answer(
    sshd_host: Any, faulty_link: Any, free_local_port: int, tmp_path: Path
) -> None:
    text = (sshd_host.directory / "ssh_config").read_text()
    # 127.0.0.2 is this machine too, but the sshd listens on 127.0.0.1 only
    first_dead = sshd_host.with_config(
        tmp_path / "config", text.replace("HostName 127.0.0.1", "HostName 127.0.0.2")
    )
    known = (sshd_host.directory / "known_hosts").read_text()
    (tmp_path / "known").write_text(known.replace("[127.0.0.1]", "[127.0.0.2]"))
    config = (tmp_path / "config").read_text()
    (tmp_path / "config").write_text(
        config.replace(f"{sshd_host.directory}/known_hosts", f"{tmp_path}/known")
    )

    connection = first_dead.connect(host=first_dead.spec(fallback="127.0.0.1"))

    assert connection.run(["echo", "there"]).stdout == "there\n"
    assert connection.resolved.hostname == "127.0.0.1"
    assert "HostName=127.0.0.1" in connection.openssh()


def test_when_both_addresses_are_silent_both_are_named(free_local_port: int) -> None:
    host = Host(contract="tiny-cpu", hostname="127.0.0.1", fallback="127.0.0.2", port=free_local_port)

    with (
        HostConnection("box", host) as connection,
        pytest.raises(UnreachableError, match=r"127\.0\.0\.1:.*and at the fallback address, .*127\.0\.0\.2:"),
    ):
        connection.run(["true"])
