"""Two kinds of host on this machine: the embedded server and a real OpenSSH sshd, neither touching ~/.ssh.

`any_host` runs a test against both. A fixture's `connect()` gives a `HostConnection`; every test gets its
own root.
`new_sshd` and `new_embedded` start servers a test may break, reconfigure or stop.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lean.contracts import Host
from remote.loopback import control as loopback
from remote.loopback.control import ALIAS
from remote.ssh.connection import HostConnection
from remote.ssh.settings import SshSettings

# Real deadlines are 30 s; a fault shows up in a test within these.
QUICK = SshSettings(connect_timeout=5, handshake_timeout=5, stall_timeout=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalHost:
    """A host spec and the settings that reach it. `directory` holds the server's keys and configuration."""

    kind: str
    name: str
    host: Host
    settings: SshSettings
    directory: Path
    home: Path
    port: int
    pid: int
    user: str
    opened: list[HostConnection] = field(default_factory=list)

    def connect(self, host: Host | None = None, **settings: Any) -> HostConnection:
        """A connection, closed at the end of the test. `settings` replaces fields of `SshSettings`."""
        made = HostConnection(self.name, host or self.host, replace(self.settings, **settings))
        self.opened.append(made)
        return made

    def spec(self, **fields: Any) -> Host:
        """The host with some fields of `contracts.Host` replaced."""
        return replace(self.host, **fields)

    def with_root(self, root: Path) -> LocalHost:
        """The same server with another root, and nothing opened to it yet."""
        return replace(self, host=replace(self.host, root=str(root)), opened=[])

    def with_config(self, path: Path, text: str) -> LocalHost:
        """The same server, reached through the ssh configuration `text`, written to `path`."""
        path.write_text(text)
        alias = ALIAS if self.kind == "embedded" else self.name
        return replace(
            self,
            kind=f"{self.kind} by its configuration",
            name="box",
            host=replace(self.host, hostname=alias),
            settings=replace(self.settings, ssh_config=path),
        )

    def through(self, port: int, path: Path) -> LocalHost:
        """The same server, with the same key, behind another port of this machine: a `FaultyLink`."""
        text = (self.directory / "ssh_config").read_text()
        if self.kind == "sshd":
            text = text.replace("\nHost *", f"\n  HostKeyAlias [127.0.0.1]:{self.port}\nHost *")
        return self.with_config(path, text.replace(f"Port {self.port}", f"Port {port}"))


class FaultyLink:
    """A TCP proxy on 127.0.0.1 that can cut or stall what it carries. `carried` counts bytes both ways."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.carried = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._closed = False
        self._at: int | None = None
        self._then: Callable[[], None] = self.cut
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Reset every connection: an RST at once, whatever is still in the buffers."""
        for pair in self._pairs:
            for end in pair:
                with suppressed():
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                with suppressed():
                    end.shutdown(socket.SHUT_RD)  # wakes the thread that reads it
                end.close()

    def call_after(self, carried: int | None, then: Callable[[], None]) -> None:
        """Call once so many more bytes were carried; None: never."""
        self._at, self._then = None if carried is None else self.carried + carried, then

    def cut_after(self, carried: int | None) -> None:
        """Cut every connection once so many more bytes were carried; None: never."""
        self.call_after(carried, self.cut)

    def stall_after(self, carried: int) -> None:
        """Stall once so many more bytes were carried."""
        self.call_after(carried, self.stall)

    @property
    def stalled(self) -> bool:
        """Whether nothing is delivered."""
        return not self._flowing.is_set()

    def stall(self) -> None:
        """Deliver nothing more; the kernel goes on acknowledging."""
        self._flowing.clear()

    def flow(self) -> None:
        """Deliver again."""
        self._at = None
        self._flowing.set()

    def close(self) -> None:
        self._closed = True
        self._flowing.set()
        with suppressed(), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            pass
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._closed:
                client.close()
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._pairs.append((client, server))
            for source, sink in ((client, server), (server, client)):
                thread = threading.Thread(target=self._carry, args=(source, sink))
                self._threads.append(thread)
                thread.start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppressed():
            while data := source.recv(1 << 16):
                self._flowing.wait()
                sink.sendall(data)
                self.carried += len(data)
                if self._at is not None and self.carried >= self._at:
                    self._at = None
                    self._then()
        with suppressed():
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def embedded_server(directory: Path) -> Iterator[LocalHost]:
    settings = replace(QUICK, loopback=directory)
    up = loopback.ensure_up(directory)
    assert up.port is not None
    assert up.pid is not None
    try:
        yield from closing(
            LocalHost(
                kind="embedded",
                name="loopback",
                host=Host(contract="tiny-cpu"),
                settings=settings,
                directory=directory,
                home=directory / "home",
                port=up.port,
                pid=up.pid,
                user="lean",
            )
        )
    finally:
        loopback.down(directory)


@contextmanager
def openssh_server(directory: Path, *extra: str) -> Iterator[LocalHost]:
    """A real sshd as this user, with its own keys and configuration. `extra`: more lines for sshd_config."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if sshd is None:
        pytest.skip("needs the OpenSSH server binary, sshd")
    if pwd.getpwuid(os.getuid()).pw_shell.endswith(("nologin", "false")):
        pytest.skip("needs an account with a login shell, else sshd refuses it")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd run by root insists on this directory
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    home = directory / "home"
    home.mkdir(mode=0o700)
    for name in ("host_ed25519", "user_ed25519"):
        generate_key(directory / name)
    shutil.copy(directory / "user_ed25519.pub", directory / "authorized_keys")
    port, user = free_port(), pwd.getpwuid(os.getuid()).pw_name
    sshd_config = [
        *extra,  # first, because sshd takes the first value of a keyword
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {directory}/host_ed25519",
        f"AuthorizedKeysFile {directory}/authorized_keys",
        f"PidFile {directory}/sshd.pid",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "AllowTcpForwarding yes",
        "MaxSessions 100",
        "MaxStartups 100",
        f"SetEnv HOME={home}",
    ]
    (directory / "sshd_config").write_text("\n".join(sshd_config) + "\n")
    key = (directory / "host_ed25519.pub").read_text().split()
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    (directory / "ssh_config").write_text(ssh_config("sshd-host", directory, port, user))
    with open(directory / "sshd.log", "wb") as log:
        server = subprocess.Popen([sshd, "-D", "-e", "-f", str(directory / "sshd_config")], stderr=log)
    try:
        wait_for_port(port, server)
        yield from closing(
            LocalHost(
                kind="sshd",
                name="sshd-host",
                host=Host(contract="tiny-cpu", hostname="sshd-host"),
                settings=replace(QUICK, ssh_config=directory / "ssh_config"),
                directory=directory,
                home=home,
                port=port,
                pid=server.pid,
                user=user,
            )
        )
    finally:
        left = children_of(server.pid)
        server.terminate()
        server.wait(5)
        for pid in left:
            with suppressed():
                os.kill(pid, 9)


def ssh_config(alias: str, directory: Path, port: int, user: str) -> str:
    """A configuration that names everything, so that nothing of the developer's own is read."""
    return (
        f"Host {alias}\n  HostName 127.0.0.1\n  Port {port}\n  User {user}\n"
        f"  IdentityFile {directory}/user_ed25519\n"
        f"Host *\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {directory}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
    )


def generate_key(path: Path) -> None:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until and server.poll() is None:
        with suppressed(), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError(f"sshd does not listen on {port}, exit code {server.poll()}")


def children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


@contextmanager
def suppressed() -> Iterator[None]:
    try:
        yield
    except OSError:
        return


def closing(host: LocalHost) -> Iterator[LocalHost]:
    """Yield a host; afterwards close what was opened to it."""
    try:
        yield host
    finally:
        for connection in host.opened:
            connection.close()


@pytest.fixture(scope="session")
def embedded_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHost]:
    with embedded_server(tmp_path_factory.mktemp("embedded") / "loopback") as host:
        yield host


@pytest.fixture(scope="session")
def sshd_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHost]:
    with openssh_server(tmp_path_factory.mktemp("sshd") / "server") as host:
        yield host


@pytest.fixture
def embedded_host(embedded_session: LocalHost, tmp_path: Path) -> Iterator[LocalHost]:
    """The embedded server, shared by the tests of a run; the root is this test's own."""
    yield from closing(embedded_session.with_root(tmp_path / "host" / "lean"))


@pytest.fixture
def sshd_host(sshd_session: LocalHost, tmp_path: Path) -> Iterator[LocalHost]:
    """A real OpenSSH sshd, shared by the tests of a run; the root is this test's own."""
    yield from closing(sshd_session.with_root(tmp_path / "host" / "lean"))


@pytest.fixture(params=["embedded", pytest.param("sshd", marks=pytest.mark.sshd)])
def any_host(request: pytest.FixtureRequest) -> LocalHost:
    """The same test against the embedded server and against a real sshd."""
    found: LocalHost = request.getfixturevalue(f"{request.param}_host")
    return found


@pytest.fixture
def place(any_host: LocalHost) -> Path:
    """A folder of the host, seen from here: both are this machine."""
    folder = Path(any_host.host.root) / "models"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def new_sshd(tmp_path: Path) -> Iterator[Callable[..., LocalHost]]:
    """Start a further sshd for this test alone: `new_sshd("name", "MaxSessions 1")`."""
    with ExitStack() as servers:
        yield lambda name="sshd", *extra: servers.enter_context(openssh_server(tmp_path / name, *extra))


@pytest.fixture
def new_embedded(tmp_path: Path) -> Iterator[Callable[..., LocalHost]]:
    """Start a further embedded server for this test alone: `new_embedded("name")`."""
    with ExitStack() as servers:
        yield lambda name="loopback": servers.enter_context(embedded_server(tmp_path / name))


@pytest.fixture
def faulty_link() -> Iterator[Callable[[int], FaultyLink]]:
    """Put a link before a port: `link = faulty_link(host.port)`, then `host.through(link.port, path)`."""
    made: list[FaultyLink] = []

    def make(target: int) -> FaultyLink:
        made.append(FaultyLink(target))
        return made[-1]

    yield make
    for link in made:
        link.close()


@pytest.fixture
def free_local_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    return free_port()
