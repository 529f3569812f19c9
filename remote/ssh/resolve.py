"""Where a host's name leads, answered by OpenSSH itself.

`ssh -G` reads the user's own configuration, with Include, Match, HostKeyAlias and ProxyJump, most of which
Paramiko does not understand. Its answer feeds the Fabric connection and every OpenSSH child, so that both
reach the same place.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lean.contracts import Host
from lean.errors import ContractError, PreflightError, UnreachableError
from remote.ssh.settings import SshSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedHost:
    """One address of one host. `options` are the ssh arguments that lead there; `destination` follows them.

    `config_lines` are the `Host` lines of the ssh configuration that applied, as `file:line pattern`.
    """

    name: str
    destination: str
    options: tuple[str, ...]
    config_file: Path | None
    config_lines: tuple[str, ...]
    hostname: str
    user: str
    port: int
    identity_files: tuple[Path, ...]
    identities_only: bool
    identity_agent: str | None
    user_known_hosts: tuple[Path, ...]
    global_known_hosts: tuple[Path, ...]
    host_key_alias: str | None
    proxy_jump: str | None
    proxy_command: str | None

    @property
    def address(self) -> str:
        """`user@hostname:port`, as messages name it."""
        return f"{self.user}@{self.hostname}:{self.port}"

    @property
    def known_hosts_name(self) -> str:
        """The name the key is recorded under: the alias as it is, else hostname, with the port unless 22."""
        if self.host_key_alias:
            return self.host_key_alias
        return self.hostname if self.port == 22 else f"[{self.hostname}]:{self.port}"


def resolve(name: str, host: Host, settings: SshSettings) -> ResolvedHost:
    """Ask `ssh -G` where `host` is. `name` is its name in hosts.yaml.

    Errors: `ContractError` with OpenSSH's own words for a broken configuration; `PreflightError` without ssh.
    """
    if host.hostname is None:
        raise ContractError(f"hosts.{name}.hostname: missing")
    return _resolve(name, host.hostname, _overrides(host), settings)


def resolve_fallback(name: str, host: Host, first: ResolvedHost, settings: SshSettings) -> ResolvedHost:
    """The same host at its second address: the same configuration and, as the same machine, the same key."""
    if host.hostname is None or host.fallback is None:
        raise ContractError(f"hosts.{name}.fallback: missing")
    other = ("-o", f"HostName={host.fallback}", "-o", f"HostKeyAlias={first.known_hosts_name}")
    return _resolve(name, host.hostname, (*other, *_overrides(host)), settings)


def home_directory() -> Path:
    """The account's home as OpenSSH sees it: from the password database, whatever HOME says."""
    return Path(pwd.getpwuid(os.getuid()).pw_dir)


def _overrides(host: Host) -> tuple[str, ...]:
    options: list[str] = []
    if host.user is not None:
        options += ["-o", f"User={host.user}"]
    if host.port is not None:
        options += ["-o", f"Port={host.port}"]
    if host.identity_file is not None:
        options += ["-o", f"IdentityFile={host.identity_file}"]
    if host.proxy_jump is not None:
        options += ["-o", f"ProxyJump={host.proxy_jump}"]
    return tuple(options)


def _resolve(name: str, destination: str, options: Sequence[str], settings: SshSettings) -> ResolvedHost:
    config = ("-F", str(settings.ssh_config)) if settings.ssh_config is not None else ()
    argv = ["ssh", *config, *options, "-T", "-v", "-G", "--", destination]
    answer = _ask(name, argv, settings.connect_timeout)
    values: dict[str, list[str]] = {}
    for line in answer.stdout.splitlines():
        key, _, value = line.partition(" ")
        values.setdefault(key, []).append(value)
    single = {key: found[0] for key, found in values.items()}
    agent = single.get("identityagent")
    resolved = ResolvedHost(
        name=name,
        destination=destination,
        options=(*config, *options),
        config_file=settings.ssh_config,
        config_lines=_applied_lines(answer.stderr),
        hostname=single["hostname"],
        user=single["user"],
        port=int(single["port"]),
        identity_files=(),
        identities_only=single.get("identitiesonly") == "yes",
        identity_agent=agent,
        user_known_hosts=_known_hosts_files(single.get("userknownhostsfile", "")),
        global_known_hosts=_known_hosts_files(single.get("globalknownhostsfile", "")),
        host_key_alias=_unless_none(single.get("hostkeyalias")),
        proxy_jump=_unless_none(single.get("proxyjump")),
        proxy_command=_unless_none(single.get("proxycommand")),
    )
    return _with_identities(resolved, values.get("identityfile", []))


def _ask(name: str, argv: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    try:
        answer = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise PreflightError("no `ssh` on this machine; install the OpenSSH client") from None
    except subprocess.TimeoutExpired:
        raise UnreachableError(
            f"{name}: `ssh -G` did not answer within {timeout:g} s; "
            "does a `Match exec` of the ssh configuration hang?"
        ) from None
    if answer.returncode != 0:
        noise = ("debug", "OpenSSH_")
        said = [line for line in answer.stderr.splitlines() if line and not line.startswith(noise)]
        reason = said[0] if said else f"ssh -G exited with {answer.returncode}"
        raise ContractError(f"{name}: the ssh configuration cannot be used: {reason}")
    return answer


def _with_identities(resolved: ResolvedHost, values: Sequence[str]) -> ResolvedHost:
    files = tuple(Path(expand(value, resolved)) for value in values if value != "none")
    return replace(resolved, identity_files=files)


def expand(value: str, resolved: ResolvedHost) -> str:
    """`~` and the percent tokens of ssh_config(5) that `ssh -G` leaves in place."""
    home = home_directory()
    if value == "~" or value.startswith("~/"):
        value = str(home) + value[1:]
    tokens = {
        "%": "%",
        "d": str(home),
        "h": resolved.hostname,
        "n": resolved.destination,
        "p": str(resolved.port),
        "r": resolved.user,
        "u": pwd.getpwuid(os.getuid()).pw_name,
        "i": str(os.getuid()),
        "k": resolved.host_key_alias or resolved.hostname,
    }
    return re.sub(r"%(.)", lambda found: tokens.get(found[1], found[0]), value)


def _known_hosts_files(text: str) -> tuple[Path, ...]:
    """`ssh -G` joins names by blanks and quotes none: a word that starts no path continues the one before."""
    paths: list[str] = []
    for word in text.split(" "):
        if not paths or word.startswith(("/", "~")) or word == "none":
            paths.append(word)
        else:
            paths[-1] += f" {word}"
    home = str(home_directory())
    return tuple(
        Path(re.sub(r"^~(?=/)", home, path)) for path in paths if path not in ("", "none", "/dev/null")
    )


def _applied_lines(verbose: str) -> tuple[str, ...]:
    found = re.findall(r"^debug1: (.+) line (\d+): Applying options for (.+?)\r?$", verbose, re.MULTILINE)
    return tuple(f"{path}:{line} {pattern}" for path, line, pattern in found)


def _unless_none(value: str | None) -> str | None:
    return None if value in (None, "", "none") else value
