"""One live, verified SSH connection: a Fabric `Connection` that refuses unknown keys, and its watchdog.

Import this module only where a connection opens: it brings in Fabric and Paramiko (0.25 s).
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

import fabric
import paramiko

from lean.errors import AuthError, LeanError, NotReadyError, UnreachableError
from remote.ssh.keys import OfferedKeys
from remote.ssh.known_hosts import RecordedKey, check_host_key, recorded_keys
from remote.ssh.resolve import ResolvedHost
from remote.ssh.settings import SshSettings
from remote.ssh.stream import ByteStream, open_stream

LOG = "lean.ssh"

# Paramiko prefers CTR with a separate MAC; GCM is one pass in OpenSSL and about twice as fast.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
_WINDOW = 4 << 20
_THREAD_END_S = 5.0  # Paramiko's thread looks every 0.1 s whether it was closed


class RecordedKeysOnly(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Accepts the keys OpenSSH has on record for this host and nothing else, before anything is sent."""

    def __init__(self, resolved: ResolvedHost, recorded: tuple[RecordedKey, ...]) -> None:
        self._resolved = resolved
        self._recorded = recorded

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        """Called for every key, because the client itself is given none. Errors: `HostKeyError`."""
        check_host_key(self._resolved, self._recorded, key.get_name(), key.asbytes())


class VerifiedConnection(fabric.Connection):  # type: ignore[misc]
    """A Fabric connection over `stream` that knows only OpenSSH's answers and reads no configuration."""

    def __init__(
        self, resolved: ResolvedHost, settings: SshSettings, stream: ByteStream, keys: OfferedKeys
    ) -> None:
        recorded = recorded_keys(resolved)
        config = fabric.Config(lazy=True, ssh_config=paramiko.SSHConfig())
        config.authentication.strategy_class = lambda **_: keys
        super().__init__(
            resolved.hostname,
            user=resolved.user,
            port=resolved.port,
            config=config,
            forward_agent=False,
            connect_timeout=None,
            connect_kwargs={
                "sock": stream.sock,
                "timeout": settings.handshake_timeout,
                "banner_timeout": settings.handshake_timeout,
                "auth_timeout": settings.handshake_timeout,
                "channel_timeout": settings.stall_timeout,
                "transport_factory": _transport_factory(settings, recorded),
            },
        )
        self.client.set_missing_host_key_policy(RecordedKeysOnly(resolved, recorded))
        self.client.set_log_channel(LOG)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFacts:
    """The host key that was verified, the key that was admitted, and what the server calls itself."""

    host_key: str
    login_key: str
    server: str


class SshSession:
    """An open connection, its stream and its watchdog, made by `dial`. `close` leaves no thread, no child."""

    def __init__(
        self, connection: VerifiedConnection, stream: ByteStream, keys: OfferedKeys, settings: SshSettings
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._patience = settings.stall_timeout
        self._where = f"{connection.user}@{connection.host}:{connection.port}"
        self.transport = connection.transport
        key = self.transport.get_remote_server_key()
        self.facts = SessionFacts(
            host_key=f"{key.get_name()} {key.fingerprint}",
            login_key=keys.tried[-1],
            server=self.transport.remote_version,
        )
        self._watchdog = Watchdog(self.transport, settings.stall_timeout)
        self._watchdog.start()

    @property
    def alive(self) -> bool:
        """Whether the transport still runs. A stalled peer counts as alive until the watchdog has spoken."""
        return bool(self.transport.is_active())

    def answers(self) -> bool:
        """Ask the peer for a sign of life and wait for it; the watchdog bounds the wait."""
        return _probe(self.transport)

    def start(self, line: str, what: str) -> Any:
        """Open a session channel and run `line` in it; `what` opens every message.

        Errors: `UnreachableError`, also when the server refuses.
        """
        try:
            channel = self.transport.open_session(timeout=self._patience)
        except paramiko.ChannelException as error:
            raise UnreachableError(f"{what}: the host opens no further session ({error})") from None
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._silent(what, error) from None
        try:
            channel.exec_command(line)
        except (paramiko.SSHException, EOFError, OSError) as error:
            channel.close()
            if self.answers():
                raise UnreachableError(f"{what}: the SSH server refuses to run commands ({error})") from None
            raise self.lost(what) from None
        return channel

    def lost(self, what: str) -> UnreachableError:
        """The error for a command whose fate the link took with it."""
        return UnreachableError(
            f"{what}: the link to {self._where} was lost; "
            "what runs there is unknown, look before repeating it"
        )

    def open_channel(self, kind: str, destination: tuple[str, int]) -> Any:
        """A raw channel. Errors: `NotReadyError` when nothing listens there, `UnreachableError`."""
        what = f"{kind} to {destination[0]}:{destination[1]}"
        try:
            return self.transport.open_channel(kind, destination, ("127.0.0.1", 0), timeout=self._patience)
        except paramiko.ChannelException as error:
            raise NotReadyError(f"{what}: {self._where} refuses: {error.text or error}") from None
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._silent(what, error) from None

    def _silent(self, what: str, error: Exception) -> UnreachableError:
        self.transport.close()  # whatever state it is in, the next command gets a new link
        reason = str(error) or type(error).__name__
        return UnreachableError(f"{what}: {self._where} does not answer any more ({reason}); try again")

    def close(self) -> None:
        """Close the connection, its stream and its watchdog. Safe to call twice."""
        self._watchdog.stop()
        _close_client(self._connection)
        self._stream.close()
        self._watchdog.join()


class Watchdog(threading.Thread):
    """Closes a transport whose peer leaves a probe unanswered for two thirds of `stall` seconds.

    TCP alone does not notice a peer that acknowledges and never answers, or a laptop that slept.
    """

    def __init__(self, transport: Any, stall: float) -> None:
        super().__init__(name="ssh-watchdog", daemon=True)
        self._transport = transport
        self._interval = stall / 3
        self._patience = 2 * stall / 3
        self._stopped = threading.Event()

    def run(self) -> None:
        """Probe until stopped or the transport ends."""
        while not self._stopped.wait(self._interval) and self._transport.is_active():
            alarm = threading.Timer(self._patience, self._transport.close)
            alarm.start()
            _probe(self._transport)
            alarm.cancel()
            alarm.join()

    def stop(self) -> None:
        """End the watchdog; call before closing the transport."""
        self._stopped.set()


def dial(resolved: ResolvedHost, settings: SshSettings) -> SshSession:
    """Connect, verify the host's key, authenticate.

    Errors: `HostKeyError`, `AuthError`, and `UnreachableError` for everything before and in between.
    """
    logging.getLogger(LOG).addHandler(logging.NullHandler())  # otherwise Python prints Paramiko's tracebacks
    stream = open_stream(resolved, settings)
    keys = OfferedKeys(resolved)
    try:
        connection = VerifiedConnection(resolved, settings, stream, keys)
        try:
            connection.open()
        except BaseException as error:
            _close_client(connection)
            raise _named(error, resolved, stream, keys) from None
        return SshSession(connection, stream, keys, settings)
    except BaseException:
        stream.close()
        raise


def _close_client(connection: VerifiedConnection) -> None:
    """Close and wait for the transport's thread, which Paramiko does not do for one that failed by itself."""
    transport = connection.client.get_transport()
    connection.client.close()
    if transport is not None and transport.is_alive():
        transport.join(_THREAD_END_S)


def _transport_factory(settings: SshSettings, recorded: tuple[RecordedKey, ...]) -> Any:
    def make(sock: Any, **options: Any) -> Any:
        transport = paramiko.Transport(sock, default_window_size=_WINDOW, **options)
        transport.handshake_timeout = settings.handshake_timeout
        security = transport.get_security_options()
        security.ciphers = _CIPHERS
        security.key_types = _preferred(security.key_types, {key.kind for key in recorded})
        return transport

    return make


def _preferred(offered: tuple[str, ...], recorded: set[str]) -> tuple[str, ...]:
    """Host key algorithms with the recorded kinds first, so that the host shows a key we can check."""
    if "ssh-rsa" in recorded:
        recorded = recorded | {"rsa-sha2-512", "rsa-sha2-256"}
    return tuple(sorted(offered, key=lambda kind: kind not in recorded))


def _probe(transport: Any) -> bool:
    try:
        transport.global_request("keepalive@openssh.com", wait=True)
    except (EOFError, OSError, paramiko.SSHException):
        return False
    return bool(transport.is_active())


def _named(
    error: BaseException, resolved: ResolvedHost, stream: ByteStream, keys: OfferedKeys
) -> BaseException:
    where = f"{resolved.name}: {resolved.address}"
    if isinstance(error, paramiko.AuthenticationException):
        return _auth_error(error, where, keys)
    if isinstance(error, LeanError) or not isinstance(error, (paramiko.SSHException, EOFError, OSError)):
        return error
    reason = str(error) or type(error).__name__
    return stream.explain() or UnreachableError(
        f"{where}: connected, but no SSH session came up ({reason}); "
        "is this the SSH port, and is the server healthy?"
    )


def _auth_error(error: paramiko.AuthenticationException, where: str, keys: OfferedKeys) -> UnreachableError:
    results = [result.result for result in getattr(error, "result", [])]
    reasons = [str(result) for result in results if isinstance(result, Exception)]
    if any("timeout" in reason.lower() or "shut down" in reason for reason in reasons):
        return UnreachableError(f"{where}: the link was lost while logging in; try again")
    tried = f"tried {', '.join(keys.tried)}" if keys.tried else "there was no key to try"
    unusable = f"; {'; '.join(keys.unusable)}" if keys.unusable else ""
    return AuthError(
        f"{where}: refused, {tried}{unusable}; add the public key to ~/.ssh/authorized_keys there "
        "(`ssh-copy-id`), or name the right one in identity_file"
    )
