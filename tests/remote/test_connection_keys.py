"""Host keys and login keys: what is refused, what the message says, and that OpenSSH agrees."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lean.errors import AuthError, HostKeyError


def keygen(*argv: str) -> str:
    return subprocess.run(
        ["ssh-keygen", *argv], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    ).stdout


def new_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    keygen("-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path))
    return path


def fingerprint(public: Path) -> str:
    """As OpenSSH itself prints it."""
    return keygen("-l", "-E", "sha256", "-f", str(public)).split()[1]


def with_known_hosts(host: Any, tmp_path: Path, text: str) -> Any:
    """The same host with `text` as the only known_hosts file there is."""
    known = tmp_path / "known_hosts"
    known.write_text(text)
    config = (host.directory / "ssh_config").read_text()
    old = f"{host.directory}/known_hosts"
    assert old in config
    return host.with_config(tmp_path / "config", config.replace(old, str(known)))


def server_key(host: Any) -> str:
    """`kind base64` of the server's host key."""
    return " ".join((host.directory / "host_ed25519.pub").read_text().split()[:2])


def recorded_name(host: Any) -> str:
    return "leanstack-loopback" if host.kind.startswith("embedded") else f"[127.0.0.1]:{host.port}"


@pytest.mark.security("an unknown host key is refused")
def test_an_unknown_key_is_refused_and_its_fingerprint_shown(any_host: Any, tmp_path: Path) -> None:
    stranger = with_known_hosts(any_host, tmp_path, "")

    with pytest.raises(HostKeyError, match="is not known") as caught:
        stranger.connect().run(["touch", str(tmp_path / "canary")])

    assert fingerprint(any_host.directory / "host_ed25519.pub") in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_the_known_hosts_line_it_prints_makes_the_next_connection_work(any_host: Any, tmp_path: Path) -> None:
    stranger = with_known_hosts(any_host, tmp_path, "")
    with pytest.raises(HostKeyError) as caught:
        stranger.connect().run(["true"])

    line = str(caught.value).rpartition(" the line `")[2].removesuffix("`")
    (tmp_path / "known_hosts").write_text(line + "\n")

    assert stranger.connect().run(["echo", "known"]).stdout == "known\n"


def test_the_ssh_command_it_prints_records_the_key(any_host: Any, tmp_path: Path) -> None:
    stranger = with_known_hosts(any_host, tmp_path, "")
    with pytest.raises(HostKeyError) as caught:
        stranger.connect().run(["true"])
    command = str(caught.value).partition("record it with `")[2].partition("`")[0]
    assert "StrictHostKeyChecking=ask" in command

    # a test has no terminal to say yes on
    agreed = command.replace("StrictHostKeyChecking=ask", "StrictHostKeyChecking=accept-new")
    subprocess.run(["/bin/sh", "-c", agreed], check=True, capture_output=True, stdin=subprocess.DEVNULL)

    assert stranger.connect().run(["echo", "known"]).stdout == "known\n"


@pytest.mark.security("a changed host key is refused")
def test_a_changed_key_is_refused_with_both_fingerprints_and_the_place(any_host: Any, tmp_path: Path) -> None:
    old = new_key(tmp_path / "old").with_suffix(".pub")
    line = " ".join(old.read_text().split()[:2])
    changed = with_known_hosts(any_host, tmp_path, f"# first\n{recorded_name(any_host)} {line}\n")

    with pytest.raises(HostKeyError, match="CHANGED") as caught:
        changed.connect().run(["touch", str(tmp_path / "canary")])

    message = str(caught.value)
    assert fingerprint(old) in message
    assert fingerprint(any_host.directory / "host_ed25519.pub") in message
    assert f"{tmp_path}/known_hosts:2" in message
    assert not (tmp_path / "canary").exists()


def test_the_command_a_changed_key_suggests_forgets_the_old_key(any_host: Any, tmp_path: Path) -> None:
    old = new_key(tmp_path / "old").with_suffix(".pub")
    line = " ".join(old.read_text().split()[:2])
    changed = with_known_hosts(any_host, tmp_path, f"{recorded_name(any_host)} {line}\n")
    with pytest.raises(HostKeyError) as caught:
        changed.connect().run(["true"])

    command = str(caught.value).rpartition("remove the old line with `")[2].removesuffix("`")
    subprocess.run(["/bin/sh", "-c", command], check=True, capture_output=True)

    with pytest.raises(HostKeyError, match="is not known"):
        changed.connect().run(["true"])


@pytest.mark.security("nothing is offered to a server with a wrong key")
def test_nothing_is_offered_to_a_server_with_a_wrong_key(new_sshd: Any, tmp_path: Path) -> None:
    host = new_sshd("watched", "LogLevel DEBUG1")
    host.connect().run(["true"])
    log = host.directory / "sshd.log"
    assert "userauth-request" in log.read_text()
    before = log.stat().st_size

    other = new_key(tmp_path / "other").with_suffix(".pub").read_text().split()
    for known in ("", f"[127.0.0.1]:{host.port} {other[0]} {other[1]}\n"):
        with pytest.raises(HostKeyError):
            with_known_hosts(host, tmp_path, known).connect().run(["true"])

    after = log.read_bytes()[before:].decode()
    assert "SSH2_MSG_NEWKEYS received" in after  # it got as far as showing its key
    assert "userauth-request" not in after


@pytest.mark.security("a revoked host key is refused")
def test_a_revoked_key_is_refused(any_host: Any, tmp_path: Path) -> None:
    name, key = recorded_name(any_host), server_key(any_host)
    revoked = with_known_hosts(any_host, tmp_path, f"{name} {key}\n@revoked {name} {key}\n")

    with pytest.raises(HostKeyError, match=r"revoked in .*known_hosts:2"):
        revoked.connect().run(["true"])


def test_hashed_names_are_found(any_host: Any, tmp_path: Path) -> None:
    known = with_known_hosts(any_host, tmp_path, f"{recorded_name(any_host)} {server_key(any_host)}\n")
    keygen("-H", "-f", str(tmp_path / "known_hosts"))
    assert (tmp_path / "known_hosts").read_text().startswith("|1|")

    assert known.connect().run(["echo", "known"]).stdout == "known\n"


def test_a_name_pattern_is_found_and_its_exception_honoured(any_host: Any, tmp_path: Path) -> None:
    name, key = recorded_name(any_host), server_key(any_host)
    with_known_hosts(any_host, tmp_path, f"*{name[1:]} {key}\n").connect().run(["true"])

    with pytest.raises(HostKeyError, match="is not known"):
        with_known_hosts(any_host, tmp_path, f"*,!{name},!127.0.0.1 {key}\n").connect().run(["true"])


def test_a_key_recorded_without_the_port_counts_as_it_does_for_openssh(
    sshd_host: Any, tmp_path: Path
) -> None:
    known = with_known_hosts(sshd_host, tmp_path, f"127.0.0.1 {server_key(sshd_host)}\n")
    connection = known.connect()

    assert connection.run(["echo", "known"]).stdout == "known\n"
    subprocess.run([*connection.openssh(), "true"], check=True, capture_output=True, stdin=subprocess.DEVNULL)


def test_one_good_line_among_several_is_enough(any_host: Any, tmp_path: Path) -> None:
    other = " ".join(new_key(tmp_path / "other").with_suffix(".pub").read_text().split()[:2])
    name = recorded_name(any_host)
    lines = f"{name} {other}\n{name} ssh-ed25519 broken!\n{name} {server_key(any_host)}\n"

    assert with_known_hosts(any_host, tmp_path, lines).connect().run(["echo", "ok"]).stdout == "ok\n"


def test_an_older_kind_of_recorded_key_is_asked_for(new_sshd: Any, tmp_path: Path) -> None:
    rsa = new_key(tmp_path / "rsa", "rsa")
    host = new_sshd("two-keys", f"HostKey {rsa}")
    line = " ".join(rsa.with_suffix(".pub").read_text().split()[:2])
    known = with_known_hosts(host, tmp_path, f"[127.0.0.1]:{host.port} {line}\n")

    connection = known.connect()

    assert connection.run(["echo", "ok"]).stdout == "ok\n"
    assert connection.session().host_key == f"ssh-rsa {fingerprint(rsa.with_suffix('.pub'))}"


def with_identity(host: Any, tmp_path: Path, key: Path, agent: str = "none") -> Any:
    config = (host.directory / "ssh_config").read_text()
    changed = config.replace(f"{host.directory}/user_ed25519", str(key))
    assert changed != config
    return host.with_config(
        tmp_path / "config", changed.replace("IdentityAgent none", f"IdentityAgent {agent}")
    )


def test_a_refused_key_is_named(any_host: Any, tmp_path: Path) -> None:
    wrong = new_key(tmp_path / "wrong")

    with pytest.raises(AuthError, match=rf"refused, tried {wrong}; .*identity_file"):
        with_identity(any_host, tmp_path, wrong).connect().run(["true"])


def test_no_key_at_all_is_said(any_host: Any, tmp_path: Path) -> None:
    with pytest.raises(AuthError, match="there was no key to try"):
        with_identity(any_host, tmp_path, tmp_path / "absent").connect().run(["true"])


def test_a_key_behind_a_passphrase_names_the_way_out(any_host: Any, tmp_path: Path) -> None:
    locked = new_key(tmp_path / "locked", passphrase="open sesame")

    with pytest.raises(AuthError, match=rf"needs its passphrase: `ssh-add {locked}`"):
        with_identity(any_host, tmp_path, locked).connect().run(["true"])


def test_a_file_that_is_no_key_is_named(any_host: Any, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_text("not a key\n")

    with pytest.raises(AuthError, match="garbage cannot be read"):
        with_identity(any_host, tmp_path, tmp_path / "garbage").connect().run(["true"])


def test_a_key_held_by_an_agent_is_used(new_sshd: Any, tmp_path: Path) -> None:
    locked = new_key(tmp_path / "locked", passphrase="open sesame")
    host = new_sshd()
    (host.directory / "authorized_keys").write_bytes(locked.with_suffix(".pub").read_bytes())
    plain = tmp_path / "plain"
    plain.write_bytes(locked.read_bytes())
    plain.chmod(0o600)
    keygen("-q", "-p", "-P", "open sesame", "-N", "", "-f", str(plain))
    agent = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(tmp_path / "agent")],
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        environment = {**os.environ, "SSH_AUTH_SOCK": str(tmp_path / "agent")}
        while subprocess.run(["ssh-add", str(plain)], env=environment, capture_output=True).returncode:
            assert agent.poll() is None
        connection = with_identity(host, tmp_path, locked, str(tmp_path / "agent")).connect()

        assert connection.run(["echo", "in"]).stdout == "in\n"
        assert connection.session().login_key == str(locked)
        by_openssh = subprocess.run([*connection.openssh(), "echo in"], capture_output=True, text=True)
        assert by_openssh.stdout == "in\n"
    finally:
        agent.terminate()
        agent.wait(5)


@pytest.mark.security("no agent is forwarded")
def test_an_agent_is_never_forwarded(new_sshd: Any, tmp_path: Path) -> None:
    host = new_sshd("forwarding", "AllowAgentForwarding yes")
    config = (host.directory / "ssh_config").read_text()
    eager = host.with_config(tmp_path / "config", "ForwardAgent yes\n" + config)
    connection = eager.connect()

    assert connection.run(["sh", "-c", "echo ${SSH_AUTH_SOCK-none}"]).stdout == "none\n"
    assert "ForwardAgent=no" in connection.openssh()


def test_the_session_tells_which_keys_were_used(any_host: Any) -> None:
    session = any_host.connect().session()

    assert session.host_key == f"ssh-ed25519 {fingerprint(any_host.directory / 'host_ed25519.pub')}"
    assert session.login_key == str(any_host.directory / "user_ed25519")
