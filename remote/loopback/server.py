"""The embedded SSH server: 127.0.0.1 only, one user key, commands and forwards to this machine, nothing else.

It behaves as sshd does where the project can tell the difference: a command is run by /bin/sh -c in its own
session, its outputs are closed when the client leaves, and a signal that ended it is reported as one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import pwd
import re
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

import asyncssh

USER = "lean"
KILL_AFTER_S = 1.0
GONE_AFTER_S = 3.0

_WINDOW = 4 << 20
_PIPE_BUFFER = 1 << 20
# One pass in OpenSSL. OpenSSH would choose ChaCha20 where offered, which costs Python several times as much.
_CIPHERS = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"]
_PASSED = re.compile(
    r"PATH|LANG|LC_\w+|TZ|TMPDIR|SHELL|XDG_CACHE_HOME|XDG_RUNTIME_DIR|PIP_\w+|SSL_CERT_\w+|REQUESTS_CA_BUNDLE"
    r"|CURL_CA_BUNDLE|(?i:https?|no|all)_(?i:proxy)|HF_ENDPOINT|CUDA_HOME|CUDA_PATH|CUDA_VISIBLE_DEVICES"
    r"|LD_LIBRARY_PATH"
)
_SECRET = re.compile(r"TOKEN|PASSWORD|SECRET|API_KEY", re.IGNORECASE)


def session_environment(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """What a command starts with: `home`, and the user's variables that say where tools and caches are.

    Caches and pip's configuration stay the user's, although HOME is not.
    """
    passed = {
        name: value for name, value in environ.items() if _PASSED.fullmatch(name) and not _SECRET.search(name)
    }
    account = pwd.getpwuid(os.getuid())
    real = Path(environ.get("HOME") or account.pw_dir)
    passed.setdefault("PATH", os.defpath)
    passed.setdefault("XDG_CACHE_HOME", str(real / ".cache"))
    pip = next((p for p in (real / ".config/pip/pip.conf", real / ".pip/pip.conf") if p.is_file()), None)
    if pip is not None:
        passed.setdefault("PIP_CONFIG_FILE", str(pip))
    return passed | {"HOME": str(home), "USER": account.pw_name, "LOGNAME": account.pw_name}


class Running:
    """Commands being started, the process groups of those that have not ended, and the open connections."""

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self.home = home
        self.environment = dict(environment)
        self.starting: set[asyncio.Task[None]] = set()
        self.groups: set[int] = set()
        self.connections: set[asyncssh.SSHServerConnection] = set()

    async def stop(self) -> None:
        """End every command's whole process group, politely first; what made itself a new session goes on."""
        if self.starting:  # forked perhaps, and in no group that we know of yet
            await asyncio.wait(set(self.starting), timeout=KILL_AFTER_S)
        # A shell may end at once and leave its child: the group counts, not its leader.
        left = set(self.groups)
        for sent, patience in ((signal.SIGTERM, KILL_AFTER_S), (signal.SIGKILL, GONE_AFTER_S)):
            left = {group for group in left if _signalled(group, sent)}
            until = asyncio.get_running_loop().time() + patience
            while left and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.01)
                left = {group for group in left if _signalled(group, 0)}
        for connection in tuple(self.connections):
            connection.abort()


def _signalled(group: int, number: int) -> bool:
    """Send a signal, 0 for none, to a process group; whether it is still there."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


class _Child(asyncio.SubprocessProtocol):
    """One command's process: its outputs go to the channel, and its end becomes the channel's."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], running: Running) -> None:
        self._channel = channel
        self._running = running
        self._group = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self.transport = transport
        self._group = transport.get_pid() or 0
        self._running.groups.add(self._group)

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        assert isinstance(data, bytes)
        if not self._channel.is_closing():
            self._channel.write(data, None if fd == 1 else asyncssh.EXTENDED_DATA_STDERR)

    def pause_writing(self) -> None:
        self._channel.pause_reading()

    def resume_writing(self) -> None:
        # Not at once: asyncio calls this from inside the pipe's own write, and an end of input that the
        # channel then delivers would close the pipe over bytes just added to its buffer.
        asyncio.get_running_loop().call_soon(self._channel.resume_reading)

    def process_exited(self) -> None:
        self._running.groups.discard(self._group)
        stdin = self.transport.get_pipe_transport(0)
        if stdin is not None:
            stdin.close()

    def connection_lost(self, exc: Exception | None) -> None:
        code = self.transport.get_returncode()
        if self._channel.is_closing() or code is None:
            return
        if code >= 0:
            self._channel.exit(code)
        else:
            self._channel.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))


class _Session(asyncssh.SSHServerSession[bytes]):  # type: ignore[misc]
    """One channel that runs one command. Shells, terminals and subsystems are refused."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._command = ""
        self._child: _Child | None = None
        self._spawning: asyncio.Task[None] | None = None
        self._early = bytearray()  # what the client sent before the process was there to take it
        self._ended = False

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def exec_requested(self, command: str) -> bool:
        self._command = command
        return True

    def session_started(self) -> None:
        self._spawning = asyncio.get_running_loop().create_task(self._spawn())
        self._running.starting.add(self._spawning)
        self._spawning.add_done_callback(self._running.starting.discard)

    async def _spawn(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, self._child = await loop.subprocess_exec(
                lambda: _Child(self._channel, self._running),
                "/bin/sh",
                "-c",
                self._command,
                cwd=self._running.home,
                env=self._running.environment,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            words = f"cannot start the command: {error}\n".encode()
            self._channel.write(words, asyncssh.EXTENDED_DATA_STDERR)
            self._channel.exit(126)
            return
        stdin = self._pipe(0)
        if isinstance(stdin, asyncio.WriteTransport):
            stdin.set_write_buffer_limits(high=_PIPE_BUFFER)
            stdin.write(self._early)
        if self._channel.is_closing():
            self._close_pipes()
        elif self._ended:
            self.eof_received()
        else:
            self._channel.resume_reading()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        stdin = self._pipe(0)
        if self._child is None:
            self._early += data
            self._channel.pause_reading()
        elif isinstance(stdin, asyncio.WriteTransport) and not stdin.is_closing():
            stdin.write(data)

    def eof_received(self) -> bool:
        stdin = self._pipe(0)
        self._ended = True
        if stdin is not None:
            stdin.close()
        return True  # the outputs stay open

    def pause_writing(self) -> None:
        for pipe in (self._pipe(1), self._pipe(2)):
            if isinstance(pipe, asyncio.ReadTransport):
                pipe.pause_reading()

    def resume_writing(self) -> None:
        for pipe in (self._pipe(1), self._pipe(2)):
            if isinstance(pipe, asyncio.ReadTransport):
                pipe.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._close_pipes()

    def _close_pipes(self) -> None:
        for fd in (0, 1, 2):
            pipe = self._pipe(fd)
            if pipe is not None:
                pipe.close()

    def _pipe(self, fd: int) -> asyncio.BaseTransport | None:
        return self._child.transport.get_pipe_transport(fd) if self._child is not None else None


class _Server(asyncssh.SSHServer):  # type: ignore[misc]
    """One client's connection: public key only, forwards to loopback addresses only."""

    def __init__(self, running: Running, user_key: asyncssh.SSHKey) -> None:
        self._running = running
        self._user_key = user_key

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._running.connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._running.connections.discard(self._connection)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == USER and key.public_data == self._user_key.public_data

    def session_requested(self) -> tuple[asyncssh.SSHServerChannel[bytes], _Session]:
        channel = self._connection.create_server_channel(encoding=None, window=_WINDOW)
        return channel, _Session(self._running)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        if is_loopback(dest_host):
            return True
        raise asyncssh.ChannelOpenError(
            asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "the embedded server forwards to this machine only"
        )


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine by its loopback name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def start(listener: socket.socket, directory: Path, running: Running) -> asyncssh.SSHAcceptor:
    """Serve on a bound socket with the keys in `directory`."""
    user_key = asyncssh.read_public_key(directory / "user_ed25519.pub")
    return await asyncssh.listen(
        sock=listener,
        server_factory=lambda: _Server(running, user_key),
        server_host_keys=[str(directory / "host_ed25519")],
        encryption_algs=_CIPHERS,
        compression_algs=None,
        password_auth=False,
        kbdint_auth=False,
        host_based_auth=False,
        gss_host=None,
        agent_forwarding=False,
        x11_forwarding=False,
        allow_pty=False,
        login_timeout=30,
    )
