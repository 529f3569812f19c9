"""Deadlines and places a connection depends on. Tests shorten the deadlines; the defaults are for users."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class SshSettings:
    """Seconds, except the paths.

    `ssh_config`: the one OpenSSH configuration to read, instead of the user's and the system's.
    `loopback`: directory of the embedded server's keys, port and state.
    `stall_timeout`: a link that answers nothing for so long is closed, whatever TCP still acknowledges.
    """

    ssh_config: Path | None = None
    loopback: Path = REPOSITORY / ".lean" / "loopback"
    connect_timeout: float = 30.0
    banner_timeout: float = 30.0
    auth_timeout: float = 30.0
    channel_timeout: float = 30.0
    stall_timeout: float = 30.0
