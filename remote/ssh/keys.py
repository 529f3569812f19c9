"""Which private keys are offered to a host, in OpenSSH's order, and by which name a message calls each."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
from paramiko.agent import AgentSSH
from paramiko.auth_strategy import AuthStrategy, InMemoryPrivateKey

from remote.ssh.resolve import ResolvedHost, home_directory


class _Agent(AgentSSH):  # type: ignore[misc]
    """The running ssh-agent at `path`; Paramiko's own `Agent` knows only SSH_AUTH_SOCK."""

    def __init__(self, path: str) -> None:
        super().__init__()
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
            self._connect(sock)
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        self._close()


class OfferedKeys(AuthStrategy):  # type: ignore[misc]
    """Keys of the agent that the configuration names, the files it names, then the agent's others."""

    def __init__(self, resolved: ResolvedHost) -> None:
        super().__init__(ssh_config=None)
        self._resolved = resolved
        self.tried: list[str] = []
        self.unusable: list[str] = []

    def get_sources(self) -> Iterator[InMemoryPrivateKey]:
        agent = self._agent()
        try:
            held = {bytes(key): key for key in agent.get_keys()} if agent is not None else {}
            for path in self._resolved.identity_files:
                public = _public_blob(path)
                key = held.pop(public, None) if public is not None else None
                key = key or self._load(path)
                if key is not None:
                    yield self._source(str(path), key)
            if not self._resolved.identities_only:
                for key in held.values():
                    yield self._source(f"agent {key.comment or key.get_name()}", key)
        finally:
            if agent is not None:
                agent.close()

    def _source(self, name: str, key: Any) -> InMemoryPrivateKey:
        self.tried.append(name)
        return InMemoryPrivateKey(self._resolved.user, key)

    def _load(self, path: Path) -> Any | None:
        if not path.is_file():
            return None
        try:
            return paramiko.PKey.from_path(path)
        except (paramiko.PasswordRequiredException, TypeError):
            self.unusable.append(f"{path} needs its passphrase: `ssh-add {path}`")
        except (OSError, ValueError, paramiko.SSHException, paramiko.UnknownKeyType) as error:
            self.unusable.append(f"{path} cannot be read: {error}")
        return None

    def _agent(self) -> _Agent | None:
        path = agent_path(self._resolved.identity_agent)
        if path is None:
            return None
        try:
            return _Agent(path)
        except (OSError, paramiko.SSHException) as error:
            self.unusable.append(f"ssh-agent at {path} does not answer: {error}")
            return None


def agent_path(identity_agent: str | None) -> str | None:
    """The agent's socket by ssh_config's IdentityAgent: `none`, `SSH_AUTH_SOCK`, `$VARIABLE` or a path."""
    if identity_agent == "none":
        return None
    if identity_agent is None or identity_agent == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK") or None
    if identity_agent.startswith("$"):
        return os.environ.get(identity_agent[1:].strip("{}")) or None
    if identity_agent.startswith("~/"):
        return str(home_directory()) + identity_agent[1:]
    return identity_agent


def _public_blob(path: Path) -> bytes | None:
    public = path.with_name(path.name + ".pub")
    try:
        words = public.read_text(errors="replace").split()
    except OSError:
        return None
    try:
        return base64.b64decode(words[1], validate=True)
    except (IndexError, ValueError):
        return None
