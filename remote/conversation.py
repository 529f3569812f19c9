"""An OpenSSH child running the far end of a transfer, and what its end means."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import IO

from lean.errors import AuthError, HostKeyError, LeanError, PreflightError, UnreachableError, from_document
from lean.transfer.channel import Channel, ChannelError, Refused
from remote.carried import carried_argv
from remote.command import command_line
from remote.connection import HostConnection

LINGER_S = 5.0  # how long a child whose pipes are closed may take to end


@contextlib.contextmanager
def far_end(
    connection: HostConnection, arguments: list[str], *, on_count: Callable[[int], None] | None = None
) -> Iterator[Channel]:
    """A channel to `lean.transfer` on the host.

    Inside, `Refused` and `ChannelError` come out as the `LeanError` they stand for; the child ends with the
    block. Errors: `UnreachableError`, `HostKeyError`, `AuthError`, `PreflightError` without a usable Python
    there.
    """
    argv = [*connection.openssh(), command_line(carried_argv(connection.host.python, *arguments))]
    with tempfile.TemporaryFile() as words, _child(argv, words) as child:
        assert child.stdin is not None and child.stdout is not None
        idle_s = connection.settings.stall_timeout
        channel = Channel(child.stdout.fileno(), child.stdin.fileno(), idle_s=idle_s, on_count=on_count)
        try:
            yield channel
        except Refused as refusal:
            raise from_document(refusal.document()) from None
        except ChannelError as error:
            raise _explained(connection, error, child, words) from None


@contextlib.contextmanager
def _child(argv: list[str], words: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    # its own session: Ctrl-C reaches us alone, and closing the pipes ends it in order
    child = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, start_new_session=True
    )
    try:
        yield child
    except BaseException:
        child.kill()
        raise
    finally:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        try:
            child.wait(LINGER_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _explained(
    connection: HostConnection, error: ChannelError, child: subprocess.Popen[bytes], words: IO[bytes]
) -> LeanError:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(1.0)
    words.seek(0)
    said = words.read().decode(errors="replace").strip()
    last = said.splitlines()[-1] if said else str(error)
    if child.returncode == 127:
        return PreflightError(
            f"{connection.name}: no {connection.host.python} there; install python3, or name one as `python`"
        )
    return openssh_error(connection, said) or UnreachableError(
        f"{connection.name}: the transfer was cut ({last}); nothing was replaced, run it again to go on"
    )


def openssh_error(connection: HostConnection, said: str) -> LeanError | None:
    """The error that OpenSSH's own words stand for, None when they say nothing about keys."""
    where = f"{connection.name}: {connection.resolved.address}"
    if "Host key verification failed" in said or "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
        return HostKeyError(f"{where}: unknown or changed host key; nothing was sent. Run remote.doctor")
    if "Permission denied (" in said:
        return AuthError(f"{where}: the host refused every key; see `ssh-copy-id`, or set identity_file")
    return None


def quiet_environment() -> dict[str, str]:
    """The environment for children whose words are read: in English."""
    return dict(os.environ, LC_ALL="C")
