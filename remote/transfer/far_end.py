"""The far end of a transfer: its program, carried there on the command line, in an OpenSSH child."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from lean.errors import LeanError, PreflightError, UnreachableError, from_document
from lean.transfer.channel import Channel, ChannelError, Refused
from remote.paths import REPOSITORY
from remote.ssh.command import command_line
from remote.ssh.connection import HostConnection
from remote.ssh.openssh import error_in

SSH_FAILED = 255  # ssh(1), EXIT STATUS
LINGER_S = 5.0  # how long a child whose pipes are closed may take to end
PACKAGE = "lean.transfer"
# each imports only those before it
MODULES = ("channel", "tree", "stage", "send", "incoming", "commit", "receive", "release", "__main__")

_LOADER = """\
import base64, json, sys, types, zlib
if sys.version_info < (3, 10):
    print(json.dumps({{"error": {{"kind": "PreflightError", "message":
        "python %d.%d on the host; 3.10 or later is needed, name one as `python`" % sys.version_info[:2]}}}}))
    sys.exit(4)
for name, text in json.loads(zlib.decompress(base64.b64decode("{packed}"))):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    exec(compile(text, name, "exec"), module.__dict__)
sys.exit(sys.modules["{package}.__main__"].main(sys.argv[1:]))
"""


@functools.cache
def carried_source() -> str:
    """Program text for `python3 -c`: the modules of `lean.transfer`, packed, and their loader (20 kB)."""
    folder = REPOSITORY.joinpath(*PACKAGE.split("."))
    texts = [("lean", ""), (PACKAGE, "")]
    texts += [(f"{PACKAGE}.{name}", (folder / f"{name}.py").read_text(encoding="utf-8")) for name in MODULES]
    packed = base64.b64encode(zlib.compress(json.dumps(texts).encode(), 9)).decode()
    return _LOADER.format(packed=packed, package=PACKAGE)


def carried_argv(python: str, *arguments: str) -> list[str]:
    """The program as argv. `-I`: nothing in the host's home or environment can get in between."""
    return [python, "-I", "-c", carried_source(), *arguments]


class HostChild:
    """A host program behind an OpenSSH child: its pipes, and what its end means."""

    def __init__(
        self, connection: HostConnection, process: subprocess.Popen[bytes], stderr: IO[bytes]
    ) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.reader, self.writer = process.stdout, process.stdin
        self._connection, self._process, self._stderr = connection, process, stderr

    def fault(self, otherwise: str) -> LeanError:
        """Why it went away: a refused key, no Python there, or a cut, in OpenSSH's words or `otherwise`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace").strip()
        name, python = self._connection.name, self._connection.host.python
        if self._process.returncode == 127:
            return PreflightError(f"{name}: no {python} there; install python3, or name one as `python`")
        if self._process.returncode == SSH_FAILED:
            refused = error_in(text, f"{name}: {self._connection.resolved.address}")
            if refused is not None:
                return refused
        last = text.splitlines()[-1] if text and self._process.returncode else otherwise
        return UnreachableError(
            f"{name}: the transfer was cut ({last}); the target is whole, old or new, run it again to go on"
        )


@contextlib.contextmanager
def host_child(connection: HostConnection, argv: Sequence[str]) -> Iterator[HostChild]:
    """Run a command on the host, reached as `connection` reaches it; it ends with the block."""
    with tempfile.TemporaryFile() as stderr:
        # its own session: Ctrl-C reaches us alone, and closing the pipes ends it in order
        process = subprocess.Popen(
            [*connection.openssh(), command_line(argv)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
        child = HostChild(connection, process, stderr)
        try:
            yield child
        except BaseException:
            process.kill()
            raise
        finally:
            child.reader.close()
            with contextlib.suppress(BrokenPipeError):
                child.writer.close()
            try:
                process.wait(LINGER_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def far_end(
    connection: HostConnection, arguments: list[str], *, on_count: Callable[[int], None] | None = None
) -> Iterator[Channel]:
    """A channel to `lean.transfer` on the host.

    Inside, `Refused` and `ChannelError` come out as the `LeanError` they stand for. Errors:
    `UnreachableError`, `HostKeyError`, `AuthError`, `PreflightError` without a usable Python there.
    """
    with host_child(connection, carried_argv(connection.host.python, *arguments)) as child:
        idle_s = connection.settings.stall_timeout
        channel = Channel(child.reader.fileno(), child.writer.fileno(), idle_s=idle_s, on_count=on_count)
        try:
            yield channel
        except Refused as refusal:
            raise from_document(refusal.document()) from None
        except ChannelError as error:
            raise child.fault(str(error)) from None


def quiet_environment() -> dict[str, str]:
    """The environment for children whose words are read: in English."""
    return dict(os.environ, LC_ALL="C")
