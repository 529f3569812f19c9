"""Who may talk to the service: someone on this machine who holds the token."""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from lean.errors import PreflightError
from lean.leanserve.api_error import ApiError

_LOOPBACK_HOST = re.compile(rb"(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?", re.IGNORECASE)
_LOOPBACK_ORIGIN = re.compile(rb"https?://(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?", re.IGNORECASE)
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


def check_caller(headers: Iterable[tuple[bytes, bytes]], token: bytes) -> None:
    """Refuse a foreign Host or Origin (a web page that rebinds its name to 127.0.0.1) and a wrong token.

    `headers` have lower-case names. Errors: `ApiError` 403 for Host and Origin, 401 for the token.
    """
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    hosts = found.get(b"host", [])
    if len(hosts) != 1 or not _LOOPBACK_HOST.fullmatch(hosts[0]):
        raise ApiError(403, "Host: only 127.0.0.1 and localhost are served", code="host_not_allowed")
    if not all(_LOOPBACK_ORIGIN.fullmatch(origin) for origin in found.get(b"origin", [])):
        raise ApiError(403, "Origin: only pages of this machine are served", code="origin_not_allowed")
    given = found.get(b"authorization", [])
    scheme, _, value = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    if not (hmac.compare_digest(value.strip(), token) and scheme.lower() == b"bearer"):
        message = "send the service's token: Authorization: Bearer <token>"
        raise ApiError(401, message, code="invalid_api_key")
