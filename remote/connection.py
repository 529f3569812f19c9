"""Reaching a host: short commands over Fabric, and the argv that takes OpenSSH to the same place."""

from __future__ import annotations

import codecs
import json
import posixpath
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lean.contracts import Host
from lean.errors import AuthError, ContractError, HostKeyError, LeanError, UnreachableError
from remote.command import SHOWN, CommandResult, command_line, shown_command
from remote.exchange import OUT, Deadline, exchange
from remote.openssh import Purpose, openssh_argv
from remote.paths import HostPaths
from remote.resolve import ResolvedHost, resolve, resolve_fallback
from remote.settings import SshSettings

if TYPE_CHECKING:
    from remote.link import Link, SessionFacts

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
        self._link: Link | None = None
        self._root: str | None = None

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

    @property
    def root(self) -> str:
        """The host's root as an absolute path, `~` resolved there, once."""
        with self._lock:
            if self._root is None:
                self._root = self._find_root()
            return self._root

    @property
    def paths(self) -> HostPaths:
        """The layout below `root`."""
        return HostPaths(self.root)

    def open(self) -> None:
        """Connect now, trying `fallback` when the first address does not answer."""
        self._open()

    def close(self) -> None:
        """Close the connection; a later command opens a new one."""
        with self._lock:
            link, self._link = self._link, None
        if link is not None:
            link.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout: float | None = None,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> CommandResult:
        """Run one command to its end and return what it left.

        With `check`, a non-zero exit raises `CommandResult.failure`. `timeout` in seconds bounds the whole
        command; without one only a lost or stalled link ends the wait.
        """
        outputs: dict[bool, list[bytes]] = {True: [], False: []}
        code = self._carry(
            argv, stdin or b"", timeout, env, lambda stream, data: outputs[stream == OUT].append(data)
        )
        result = CommandResult(
            argv=tuple(argv),
            exit_code=KILLED if code is None else code,
            stdout=b"".join(outputs[True]).decode("utf-8", "replace"),
            stderr=b"".join(outputs[False]).decode("utf-8", "replace"),
            killed=code is None,
        )
        return result.check(self.name) if check else result

    def run_json(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Run a host program and return its one JSON document; errors come back as they were raised there."""
        result = self.run(argv, stdin=stdin, timeout=timeout, env=env)
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

    def stream(
        self,
        argv: Sequence[str],
        on_stdout_line: Callable[[str], None],
        on_stderr_line: Callable[[str], None],
        *,
        stdin: bytes | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Run a command and hand over its lines, without their ends, as they come, in this thread.

        Returns the exit code, 255 when a signal ended the command.
        """
        out, err = _Lines(on_stdout_line), _Lines(on_stderr_line)
        code = self._carry(
            argv,
            stdin or b"",
            timeout,
            env,
            lambda stream, data: (out if stream == OUT else err).take(data),
        )
        out.finish()
        err.finish()
        return KILLED if code is None else code

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

    def _carry(
        self,
        argv: Sequence[str],
        stdin: bytes,
        timeout: float | None,
        env: Mapping[str, str] | None,
        take: Callable[[int, bytes], None],
    ) -> int | None:
        """Run one command; its exit code, or None when a signal ended it."""
        line = command_line(argv, env)
        what = f"{self.name}: `{shown_command(argv)}`"
        deadline = Deadline(timeout)
        link = self._open()
        channel = link.start(line, what)
        for stream, data in exchange(channel, stdin, deadline, what):
            take(stream, data)
        if channel.exit_status != -1:
            return int(channel.exit_status)
        # Paramiko drops `exit-signal`: -1 is a killed command or a lost link; a living peer tells which.
        if link.answers():
            return None
        raise link.lost(what)

    def _open(self) -> Link:
        with self._lock:
            if self._link is not None and not self._link.alive:
                self.close()
            if self._link is None:
                if self.host.hostname is None:
                    self._resolved = self._resolve()  # starts the embedded server again if it was stopped
                self._link = self._dial()
            return self._link

    def _dial(self) -> Link:
        first = self.resolved
        from remote.link import dial  # Fabric and Paramiko take 0.25 s to import

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
        from remote.loopback import ensure_up

        return ensure_up(self.settings).resolve(self.name, self.host)

    def _find_root(self) -> str:
        root = self.host.root
        if root == "~" or root.startswith("~/"):
            root = self.run(["printenv", "HOME"]).stdout.removesuffix("\n") + root[1:]
        if not root.startswith("/"):
            raise ContractError(f"hosts.{self.name}.root: expected an absolute path or ~/…, got {root!r}")
        return posixpath.normpath(root)


class _Lines:
    """Cuts arriving bytes into lines of text; half a character or half a line waits for its rest."""

    def __init__(self, hand_over: Callable[[str], None]) -> None:
        self._hand_over = hand_over
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def take(self, data: bytes, final: bool = False) -> None:
        *lines, self._rest = (self._rest + self._decoder.decode(data, final)).split("\n")
        for line in lines:
            self._hand_over(line.removesuffix("\r"))

    def finish(self) -> None:
        self.take(b"", final=True)
        if self._rest:
            self._hand_over(self._rest)
