"""Where a name leads: OpenSSH's own configuration language, as OpenSSH reads it."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from lean.contracts import Host
from lean.errors import ContractError, UnreachableError
from remote.ssh.openssh import jump_argv, openssh_argv
from remote.ssh.resolve import ResolvedHost, home_directory, resolve, resolve_fallback
from remote.ssh.settings import SshSettings


def resolved(tmp_path: Path, text: str, **fields: Any) -> ResolvedHost:
    config = tmp_path / "config"
    config.write_text(text)
    host = Host(contract="tiny-cpu", hostname="box", **fields)
    return resolve("spark", host, SshSettings(ssh_config=config, connect_timeout=5))


def test_a_plain_name_gets_openssh_defaults(tmp_path: Path) -> None:
    found = resolved(tmp_path, "")

    assert (found.hostname, found.port) == ("box", 22)
    assert found.user == pwd.getpwuid(os.getuid()).pw_name
    assert home_directory() / ".ssh/id_ed25519" in found.identity_files
    assert home_directory() / ".ssh/known_hosts" in found.user_known_hosts
    assert found.known_hosts_name == "box"
    assert (found.proxy_jump, found.proxy_command, found.host_key_alias) == (None, None, None)


def test_include_match_and_alias_are_honoured_and_their_lines_named(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host box\n  HostName 192.0.2.7\n  Port 2222\n")
    text = f"Include {tmp_path}/more\nMatch host 192.0.2.7\n  User nora\n  HostKeyAlias the-box\n"

    found = resolved(tmp_path, text)

    assert found.address == "nora@192.0.2.7:2222"
    assert found.known_hosts_name == "the-box"
    assert f"{tmp_path}/more:1 box" in found.config_lines


def test_the_hosts_file_wins_over_the_configuration(tmp_path: Path) -> None:
    text = "Host box\n  User a\n  Port 1\n  IdentityFile /keys/a\n  ProxyJump gate-a\n"

    found = resolved(tmp_path, text, user="b", port=2, identity_file="~/b", proxy_jump="gate-b")

    assert found.address == "b@box:2"
    assert found.identity_files[0] == home_directory() / "b"
    assert found.proxy_jump == "gate-b"
    assert found.known_hosts_name == "[box]:2"


def test_paths_with_blanks_and_tokens_survive(tmp_path: Path) -> None:
    text = (
        'Host box\n  User nora\n  IdentityFile "/my keys/%r@%h-%%"\n'
        '  UserKnownHostsFile "/my hosts/one" ~/two\n  GlobalKnownHostsFile none\n'
    )

    found = resolved(tmp_path, text)

    assert found.identity_files == (Path("/my keys/nora@box-%"),)
    assert found.user_known_hosts == (Path("/my hosts/one"), home_directory() / "two")
    assert found.global_known_hosts == ()


def test_a_broken_configuration_is_a_contract_error_in_openssh_words(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"spark: .*config: line 2: Bad configuration option: bogus"):
        resolved(tmp_path, "Host box\n  Bogus 1\n")


def test_a_missing_configuration_is_a_contract_error(tmp_path: Path) -> None:
    host = Host(contract="tiny-cpu", hostname="box")

    with pytest.raises(ContractError, match="No such file"):
        resolve("spark", host, SshSettings(ssh_config=tmp_path / "absent"))


def test_a_configuration_that_hangs_ends_at_the_deadline(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text('Match exec "exec sleep 2"\n  User a\n')

    with pytest.raises(UnreachableError, match=r"did not answer within 0\.3 s"):
        resolve(
            "spark",
            Host(contract="tiny-cpu", hostname="box"),
            SshSettings(ssh_config=config, connect_timeout=0.3),
        )


@pytest.mark.parametrize("name", ["-oProxyCommand=touch canary", "a b", "a\nb"])
def test_a_hostname_that_reads_as_an_option_never_gets_to_ssh(name: str) -> None:
    with pytest.raises(ValueError, match="hostname"):
        Host(contract="tiny-cpu", hostname=name)


def test_a_hostname_with_shell_characters_is_refused_by_openssh(tmp_path: Path) -> None:
    host = Host(contract="tiny-cpu", hostname="$(touch${IFS}canary)")

    with pytest.raises(ContractError, match="invalid characters"):
        resolve("spark", host, SshSettings(ssh_config=Path("/dev/null")))


def test_the_fallback_keeps_configuration_and_key(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host box\n  HostName box.local\n  Port 2200\n  User nora\n")
    settings = SshSettings(ssh_config=config)
    host = Host(contract="tiny-cpu", hostname="box", fallback="192.0.2.10")
    first = resolve("spark", host, settings)

    second = resolve_fallback("spark", host, first, settings)

    assert second.address == "nora@192.0.2.10:2200"
    assert second.known_hosts_name == first.known_hosts_name == "[box.local]:2200"


def test_openssh_children_are_strict_quiet_and_share_nothing(tmp_path: Path) -> None:
    found = resolved(tmp_path, "")

    argv = openssh_argv(found, SshSettings())

    options = {argv[i + 1] for i, word in enumerate(argv) if word == "-o"}
    assert {
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "ConnectTimeout=30",
        "ServerAliveInterval=10",
        "ServerAliveCountMax=2",
        "ControlMaster=no",
        "ControlPath=none",
        "ForwardAgent=no",
        "RemoteCommand=none",
        "ClearAllForwardings=yes",
    } <= options
    assert argv[-2:] == ["--", "box"]
    assert argv[1:3] == ["-F", str(tmp_path / "config")]


def test_a_forward_keeps_its_forwardings_and_rsync_gets_no_destination(tmp_path: Path) -> None:
    found = resolved(tmp_path, "")

    assert "box" not in openssh_argv(found, SshSettings(), "rsync")


def test_every_hop_of_a_jump_is_strict(tmp_path: Path) -> None:
    found = resolved(tmp_path, "Host box\n  ProxyJump a@one:2201,[192.0.2.2]:2202\n")
    assert found.proxy_jump is not None

    argv = jump_argv(found.proxy_jump, "[box]:22", found, SshSettings())

    assert argv[-4:] == ["-p", "2202", "--", "192.0.2.2"]
    inner = next(word for word in argv if word.startswith("ProxyCommand="))
    assert "StrictHostKeyChecking=yes" in inner
    assert inner.endswith("-W '[%h]:%p' -l a -p 2201 -- one")


@pytest.mark.parametrize("jump", ["-oProxyCommand=id", "a@-x", "a b", "[::1"])
def test_a_hop_that_could_be_an_option_is_refused(tmp_path: Path, jump: str) -> None:
    found = resolved(tmp_path, "")

    with pytest.raises(ContractError, match=r"proxy_jump: expected \[user@\]host\[:port\]"):
        jump_argv(jump, "[box]:22", found, SshSettings())
