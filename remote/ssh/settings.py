"""Deadlines and places a connection depends on. Tests shorten the deadlines; the defaults are for users."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from remote.paths import LOOPBACK


@dataclass(frozen=True, slots=True, kw_only=True)
class SshSettings:
    """Seconds, except the paths.

    `ssh_config`: the one OpenSSH configuration to read, instead of the user's and the system's.
    `loopback`: directory of the embedded server's keys, port and state.
    `handshake_timeout`: for each step from the server's first words to the login.
    `stall_timeout`: a link that answers nothing for so long is closed, whatever TCP still acknowledges.
    """

    ssh_config: Path | None = None
    loopback: Path = LOOPBACK
    connect_timeout: float = 30.0
    handshake_timeout: float = 30.0
    stall_timeout: float = 30.0
