"""One writer at a time: an flock that also says who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lean.errors import PreflightError


@contextlib.contextmanager
def hold(lock: Path, what: str) -> Iterator[None]:
    """Hold `lock` (a file, created when absent, left in place) while the block runs.

    The kernel drops it with the process, so nothing is stuck after a crash. Errors: `PreflightError` naming
    the process that holds it; never waits.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PreflightError(
                f"{what} is already being written by {_holder(descriptor)}; wait for it"
            ) from None
        os.ftruncate(descriptor, 0)
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "since": since}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        body = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(body['pid'])} (since {str(body['since'])[:32]})"
    except (ValueError, KeyError, TypeError):
        return "another process"  # it took the lock a moment ago and has not written its name yet
