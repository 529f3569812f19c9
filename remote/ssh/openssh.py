"""argv for OpenSSH children: copies, forwards, gateways; as strict about keys as the Fabric connection."""

from __future__ import annotations

import re
import shlex
from typing import Literal

from lean.errors import AuthError, ContractError, HostKeyError, UnreachableError
from remote.ssh.resolve import ResolvedHost, expand
from remote.ssh.settings import SshSettings

Purpose = Literal["ssh", "rsync"]

_HOP = re.compile(
    r"(?:ssh://)?(?:(?P<user>[^@\s]+)@)?(?P<host>\[[^\]\s]+\]|[^:\[\]\s]+)(?::(?P<port>\d+))?/?"
)


def openssh_argv(resolved: ResolvedHost, settings: SshSettings, purpose: Purpose = "ssh") -> list[str]:
    """An argv prefix that reaches `resolved` with OpenSSH.

    "ssh": ends with the destination; append the command. "rsync": the value of rsync's `-e` once joined by
    `shlex.join`, without the destination.
    """
    argv = ["ssh", *resolved.options, *_strict(settings)]
    if resolved.proxy_jump is not None:
        argv += ["-o", f"ProxyCommand={jump_command(resolved.proxy_jump, resolved, settings)}"]
    return [*argv, "--", resolved.destination] if purpose == "ssh" else argv


def jump_argv(jump: str, target: str, resolved: ResolvedHost, settings: SshSettings) -> list[str]:
    """`ssh -W target` through the last hop of `jump`, itself reached through the hops before it.

    OpenSSH verifies every gateway with StrictHostKeyChecking=yes; plain ProxyJump would not pass that on.
    """
    *earlier, last = [hop.strip() for hop in jump.split(",")]
    argv = ["ssh", *_config(resolved), *_strict(settings), "-W", target]
    if earlier:
        argv += ["-o", f"ProxyCommand={jump_command(','.join(earlier), resolved, settings)}"]
    return [*argv, *_hop(resolved, last)]


def jump_command(jump: str, resolved: ResolvedHost, settings: SshSettings) -> str:
    """`jump_argv` as a ProxyCommand value: only its own target's tokens are left for ssh to expand."""
    marker = "\0"
    words = jump_argv(jump, marker, resolved, settings)
    return shlex.join(word.replace("%", "%%").replace(marker, "[%h]:%p") for word in words)


def proxy_argv(resolved: ResolvedHost, settings: SshSettings) -> list[str] | None:
    """What carries the connection instead of TCP, or None. A ProxyCommand is the user's own shell line."""
    if resolved.proxy_jump is not None:
        target = f"[{resolved.hostname}]:{resolved.port}"
        return jump_argv(resolved.proxy_jump, target, resolved, settings)
    if resolved.proxy_command is not None:
        return ["/bin/sh", "-c", "exec " + expand(resolved.proxy_command, resolved)]
    return None


def error_in(stderr: str, where: str) -> UnreachableError | None:
    """The error that the words of an OpenSSH client stand for; None when they tell of no key."""
    words = one_line(stderr)
    if any(sign in stderr for sign in ("Host key verification failed", "host key is known")):
        return HostKeyError(
            f"{where}: unknown or changed host key, nothing was sent: {words}; "
            "connect there once with `ssh`, compare and record its key"
        )
    if "Permission denied" in stderr:
        return AuthError(f"{where}: every key was refused: {words}; see `ssh-copy-id`, or set identity_file")
    return None


def one_line(stderr: str) -> str:
    """Its lines joined, without the frames of @ around OpenSSH's warnings."""
    lines = (line.strip("@ \t") for line in stderr.splitlines())
    return " / ".join(line for line in lines if line)[:600]


def _config(resolved: ResolvedHost) -> list[str]:
    return ["-F", str(resolved.config_file)] if resolved.config_file is not None else []


def _strict(settings: SshSettings) -> list[str]:
    # Two unanswered probes end the child, so a stall is noticed as soon as on the Fabric connection.
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "ConnectTimeout": str(max(1, round(settings.connect_timeout))),
        "ServerAliveInterval": str(max(1, round(settings.stall_timeout / 3))),
        "ServerAliveCountMax": "2",
        "ClearAllForwardings": "yes",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "PermitLocalCommand": "no",
        "RemoteCommand": "none",
        "RequestTTY": "no",
        "ControlMaster": "no",
        "ControlPath": "none",
        "Compression": "no",
    }
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def _hop(resolved: ResolvedHost, text: str) -> list[str]:
    found = _HOP.fullmatch(text)
    if found is None or found["host"].startswith("-"):
        raise ContractError(f"{resolved.name}: proxy_jump: expected [user@]host[:port], got {text!r}")
    user = ["-l", found["user"]] if found["user"] else []
    port = ["-p", found["port"]] if found["port"] else []
    return [*user, *port, "--", found["host"].strip("[]")]
