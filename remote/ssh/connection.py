"""Reaching a host: short commands over Fabric, and the argv that takes OpenSSH to the same place."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lean.contracts import Host
from lean.errors import AuthError, HostKeyError, LeanError, UnreachableError
from remote.ssh.command import SHOWN, CommandResult, command_line, shown_command
from remote.ssh.exchange import exchange
from remote.ssh.openssh import Purpose, openssh_argv
from remote.ssh.resolve import ResolvedHost, resolve, resolve_fallback
from remote.ssh.settings import SshSettings

if TYPE_CHECKING:
    from remote.ssh.session import SessionFacts, SshSession

KILLED = 255  # what OpenSSH's client reports for a command that a signal ended


class HostConnection:
    """One host, connected on first use and reconnected when a later command finds the link gone. Thread-safe.

    `name` is the host's name in hosts.yaml. A host without a hostname is the embedded server, started on
    demand. Every method that reaches out raises `HostKeyError`, `AuthError` or `UnreachableError`; the last
    also when the link breaks under a running command, whose fate is then unknown: no command is ever repeated
    by itself.
    """

    def __init__(self, name: str, host: Host, settings: SshSettings | None = None) -> None:
        self.name = name
        self.host = host
        self.settings = settings or SshSettings()
        self._lock = threading.RLock()
        self._resolved: ResolvedHost | None = None
        self._session: SshSession | None = None

    def __enter__(self) -> HostConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def resolved(self) -> ResolvedHost:
        """Where the host is, as OpenSSH resolves it; after a connection, the address that answered."""
        with self._lock:
            if self._resolved is None:
                self._resolved = self._resolve()
            return self._resolved

    @property
    def known_resolution(self) -> ResolvedHost | None:
        """`resolved` as far as it is known by now; resolves nothing."""
        return self._resolved

    def open(self) -> None:
        """Connect now, trying `fallback` when the first address does not answer."""
        self._open()

    def close(self) -> None:
        """Close the connection; a later command opens a new one."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
        check: bool = True,
    ) -> CommandResult:
        """Run one command to its end and return what it left.

        With `check`, a non-zero exit raises `CommandResult.failure`. `timeout` in seconds bounds the whole
        command; without one only a lost or stalled link ends the wait.
        """
        what = f"{self.name}: `{shown_command(argv)}`"
        line = command_line(argv)
        session = self._open()
        channel = session.start(line, what)
        stdout, stderr = exchange(channel, stdin, timeout, what)
        # Paramiko drops `exit-signal`: -1 is a killed command or a lost link; a living peer tells which.
        killed = channel.exit_status == -1
        if killed and not session.answers():
            raise session.lost(what)
        result = CommandResult(
            argv=tuple(argv),
            exit_code=KILLED if killed else int(channel.exit_status),
            stdout=stdout.decode("utf-8", "replace"),
            stderr=stderr.decode("utf-8", "replace"),
            killed=killed,
        )
        return result.check(self.name) if check else result

    def run_json(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float | None = None
    ) -> dict[str, Any]:
        """Run a host program and return its one JSON document; errors come back as they were raised there."""
        result = self.run(argv, stdin=stdin, timeout=timeout)
        try:
            document = json.loads(result.stdout)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            shown = result.stdout.strip()[:SHOWN] or "nothing"
            raise LeanError(
                f"{self.name}: `{shown_command(argv)}` should print one JSON document, it printed {shown!r}"
            )
        return document

    def openssh(self, argv_for: Purpose = "ssh") -> list[str]:
        """An argv prefix that reaches the same place with OpenSSH; see `remote.openssh.openssh_argv`."""
        if self.host.fallback is not None:
            self.open()  # only a connection tells which of the two addresses answers
        return openssh_argv(self.resolved, self.settings, argv_for)

    def session(self) -> SessionFacts:
        """What the open connection was verified and admitted with; connects first if need be."""
        return self._open().facts

    def open_channel(self, kind: str, destination: tuple[str, int]) -> Any:
        """A raw Paramiko channel, such as `direct-tcpip` to an address seen from the host.

        Errors also: `NotReadyError` when nothing listens there.
        """
        return self._open().open_channel(kind, destination)

    def _open(self) -> SshSession:
        with self._lock:
            if self._session is not None and not self._session.alive:
                self.close()
            if self._session is None:
                if self.host.hostname is None:
                    self._resolved = self._resolve()  # starts the embedded server again if it was stopped
                self._session = self._dial()
            return self._session

    def _dial(self) -> SshSession:
        first = self.resolved
        from remote.ssh.session import dial  # Fabric and Paramiko take 0.25 s to import

        try:
            return dial(first, self.settings)
        except (HostKeyError, AuthError):
            raise
        except UnreachableError as error:
            if self.host.fallback is None:
                raise
            failure = error
        second = resolve_fallback(self.name, self.host, first, self.settings)
        try:
            link = dial(second, self.settings)
        except (HostKeyError, AuthError):
            raise
        except UnreachableError as error:
            raise UnreachableError(f"{failure}; and at the fallback address, {error}") from None
        self._resolved = second
        return link

    def _resolve(self) -> ResolvedHost:
        if self.host.hostname is not None:
            return resolve(self.name, self.host, self.settings)
        from remote.loopback.control import ALIAS, ensure_up

        ensure_up(self.settings.loopback)
        # through its own ssh_config: the user's configuration has no say
        embedded = Host(contract=self.host.contract, hostname=ALIAS)
        own = replace(self.settings, ssh_config=self.settings.loopback / "ssh_config")
        return resolve(self.name, embedded, own)
