"""The service's bearer token: a file that whoever serves, measures or calls reads by one rule.

Standard library only.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path

from lean.errors import PreflightError

_TOKEN = re.compile(rb"[\x21-\x7e]{16,512}")


def read_token(path: Path) -> bytes:
    """The bearer token in a file that only its owner can read. Errors: `PreflightError` with the fix."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise PreflightError(
            f"token file {path}: {error.strerror}; write 16 or more characters to it, mode 0600"
        ) from error
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PreflightError(f"token file {path}: not a regular file")
        if status.st_mode & 0o077:
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            raise PreflightError(f"token file {path}: mode {mode} lets others read it; run: chmod 600 {path}")
        token = file.read(1024).strip()
    if not _TOKEN.fullmatch(token):
        raise PreflightError(f"token file {path}: expected 16 to 512 printable characters without spaces")
    return token


def ensure_token(path: Path) -> bool:
    """Write a fresh token to `path`, mode 0600, unless there is a file; whether one was written."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    return True
