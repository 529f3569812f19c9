"""Gateways: ProxyJump and ProxyCommand, verified by OpenSSH, for Fabric and for OpenSSH children alike."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lean.errors import AuthError, HostKeyError, UnreachableError


def behind(gateway: Any, target: Any, tmp_path: Path, extra: str = "", known: str | None = None) -> Any:
    """`target` through `gateway`; both keys in one known_hosts file unless `known` says otherwise."""
    keys = tmp_path / "known_hosts"
    both = (gateway.directory / "known_hosts").read_text() + (target.directory / "known_hosts").read_text()
    keys.write_text(both if known is None else known)
    text = (
        f"Host gate\n  HostName 127.0.0.1\n  Port {gateway.port}\n  User {gateway.user}\n"
        f"  IdentityFile {gateway.directory}/user_ed25519\n"
        + ("  HostKeyAlias leanstack-loopback\n" if gateway.kind == "embedded" else "")
        + (target.directory / "ssh_config")
        .read_text()
        .replace("\nHost *", f"\n  {extra or 'ProxyJump gate'}\nHost *")
    )
    return target.with_config(tmp_path / "config", text.replace(f"{target.directory}/known_hosts", str(keys)))


def test_a_jump_reaches_the_host_by_fabric_and_by_openssh(
    any_host: Any, new_sshd: Any, tmp_path: Path
) -> None:
    target = new_sshd("target")
    connection = behind(any_host, target, tmp_path).connect()

    assert connection.run(["printenv", "HOME"]).stdout == f"{target.home}\n"
    by_openssh = subprocess.run(
        [*connection.openssh(), "printenv HOME"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert (by_openssh.stdout, by_openssh.stderr) == (f"{target.home}\n", "")


def test_a_jump_through_two_gateways_works(any_host: Any, new_sshd: Any, tmp_path: Path) -> None:
    second, target = new_sshd("second"), new_sshd("target")
    text = behind(any_host, target, tmp_path, "ProxyJump gate,second-gate").settings.ssh_config.read_text()
    known = tmp_path / "known_hosts"
    known.write_text(known.read_text() + (second.directory / "known_hosts").read_text())
    hop = (second.directory / "ssh_config").read_text().replace("Host sshd-host", "Host second-gate")
    hop = hop.partition("Host *")[0]
    connection = target.with_config(tmp_path / "config", hop + text).connect()

    assert connection.run(["printenv", "HOME"]).stdout == f"{target.home}\n"
    by_openssh = subprocess.run(
        [*connection.openssh(), "printenv HOME"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert (by_openssh.stdout, by_openssh.stderr) == (f"{target.home}\n", "")


def test_large_data_passes_a_gateway(any_host: Any, new_sshd: Any, tmp_path: Path) -> None:
    data = bytes(range(256)) * 16384

    result = behind(any_host, new_sshd("target"), tmp_path).connect().run(["wc", "-c"], stdin=data)

    assert int(result.stdout) == len(data)


@pytest.mark.security("a gateway with an unknown or changed key gets nothing")
@pytest.mark.parametrize("state", ["unknown", "changed"])
def test_a_gateway_whose_key_is_not_the_recorded_one_gets_nothing(
    any_host: Any, new_sshd: Any, faulty_link: Any, tmp_path: Path, state: str
) -> None:
    target = new_sshd("target")
    link = faulty_link(target.port)
    known = (target.directory / "known_hosts").read_text()
    if state == "changed":
        name = (any_host.directory / "known_hosts").read_text().split()[0]
        known += f"{name} {' '.join(known.split()[1:3])}\n"
    through = behind(any_host, target, tmp_path, known=known)
    text = (tmp_path / "config").read_text()
    (tmp_path / "config").write_text(text.replace(f"Port {target.port}", f"Port {link.port}"))

    with pytest.raises(HostKeyError, match="the gateway: unknown or changed host key, nothing was sent"):
        through.connect().run(["true"])

    assert link.carried == 0


@pytest.mark.security("an unknown host key is refused")
def test_a_target_with_an_unknown_key_is_refused_behind_a_gateway_too(
    any_host: Any, new_sshd: Any, tmp_path: Path
) -> None:
    known = (any_host.directory / "known_hosts").read_text()

    with pytest.raises(HostKeyError, match="is not known"):
        behind(any_host, new_sshd("target"), tmp_path, known=known).connect().run(["true"])


def test_a_gateway_that_refuses_the_key_is_an_auth_error(new_sshd: Any, tmp_path: Path) -> None:
    gateway = new_sshd("gate")
    (gateway.directory / "authorized_keys").write_text("")

    with pytest.raises(AuthError, match="the gateway: every key was refused"):
        behind(gateway, new_sshd("target"), tmp_path).connect().run(["true"])


def test_a_gateway_that_does_not_answer_is_unreachable(
    sshd_host: Any, new_sshd: Any, free_local_port: int, tmp_path: Path
) -> None:
    target = new_sshd("target")
    lost = behind(sshd_host, target, tmp_path)
    text = (tmp_path / "config").read_text().replace(f"Port {sshd_host.port}", f"Port {free_local_port}")
    (tmp_path / "config").write_text(text)

    with pytest.raises(UnreachableError, match=r"the gateway gave up: .*Connection refused"):
        lost.connect().run(["true"])


def test_a_target_that_the_gateway_cannot_reach_is_unreachable(
    any_host: Any, new_sshd: Any, free_local_port: int, tmp_path: Path
) -> None:
    target = new_sshd("target")
    lost = behind(any_host, target, tmp_path)
    text = (tmp_path / "config").read_text().replace(f"Port {target.port}", f"Port {free_local_port}")
    (tmp_path / "config").write_text(text)

    with pytest.raises(
        UnreachableError, match=r"gateway gave up: .*(Connection refused|connect failed|open failed)"
    ):
        lost.connect().run(["true"])


def test_a_proxy_command_of_the_user_carries_the_connection(any_host: Any, tmp_path: Path) -> None:
    script = tmp_path / "carry"
    script.write_text(
        "import os, socket, sys, threading\n"
        "sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while data := os.read(0, 65536): sock.sendall(data)\n"
        "    sock.shutdown(socket.SHUT_WR)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while data := sock.recv(65536): os.write(1, data)\n"
    )
    text = (any_host.directory / "ssh_config").read_text()
    carried = any_host.with_config(tmp_path / "config", f"ProxyCommand python3 {script} %h %p\n{text}")

    connection = carried.connect()

    assert connection.run(["echo", "carried"]).stdout == "carried\n"
    assert connection.resolved.proxy_command is not None
    by_openssh = subprocess.run(
        [*connection.openssh(), "echo carried"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert by_openssh.stdout == "carried\n"


def test_a_proxy_command_that_fails_is_quoted(sshd_host: Any, tmp_path: Path) -> None:
    text = (sshd_host.directory / "ssh_config").read_text()
    broken = sshd_host.with_config(tmp_path / "config", f"ProxyCommand echo no tunnel today >&2\n{text}")

    with pytest.raises(UnreachableError, match="no tunnel today"):
        broken.connect().run(["true"])


def test_rsync_passes_two_gateways_with_the_argv_it_is_given(
    sshd_host: Any, new_sshd: Any, tmp_path: Path
) -> None:
    target = new_sshd("target")
    connection = behind(sshd_host, target, tmp_path, "ProxyJump gate,gate").connect()
    (tmp_path / "it's here").write_text("content\n")

    subprocess.run(
        [
            "rsync",
            "-e",
            shlex.join(connection.openssh("rsync")),
            "--",
            str(tmp_path / "it's here"),
            f"{connection.resolved.destination}:{target.home}/arrived",
        ],
        check=True,
        capture_output=True,
    )

    assert (target.home / "arrived").read_text() == "content\n"
