"""Recorded host keys, read by `ssh-keygen -F`: hashed names, patterns and markers mean what OpenSSH means."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lean.errors import HostKeyError, PreflightError
from remote.ssh.resolve import ResolvedHost

_FOUND = re.compile(r"# Host .* found: line (\d+) ?(REVOKED|CA)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedKey:
    """One line of a known_hosts file. `blob`: the key on the wire; `marker`: '', REVOKED or CA."""

    file: Path
    line: int
    kind: str
    blob: bytes
    marker: str

    @property
    def where(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"


def recorded_keys(resolved: ResolvedHost) -> tuple[RecordedKey, ...]:
    """Every line that speaks about this host, the user's files first.

    OpenSSH also accepts a key recorded without the port when none is recorded with it; so do we.
    """
    names = [resolved.known_hosts_name]
    if resolved.host_key_alias is None and resolved.port != 22:
        names.append(resolved.hostname)
    for name in names:
        files = (*resolved.user_known_hosts, *resolved.global_known_hosts)
        found = tuple(key for path in files if path.is_file() for key in _lines(name, path))
        if found:
            return found
    return ()


def check_host_key(resolved: ResolvedHost, recorded: tuple[RecordedKey, ...], kind: str, blob: bytes) -> None:
    """Raise `HostKeyError` unless this very key is recorded for this host and not revoked. Sends nothing."""
    offered = f"{kind} {fingerprint(blob)}"
    revoked = [key for key in recorded if key.marker == "REVOKED" and key.blob == blob]
    if revoked:
        raise HostKeyError(
            f"{resolved.name}: the host key {offered} is revoked in {revoked[0].where}; "
            "give the machine a new host key before you connect"
        )
    plain = [key for key in recorded if not key.marker]
    if any(key.blob == blob for key in plain):
        return
    if plain:
        raise HostKeyError(_changed(resolved, plain, offered))
    raise HostKeyError(_unknown(resolved, offered, f"{kind} {base64.b64encode(blob).decode()}"))


def fingerprint(blob: bytes) -> str:
    """`SHA256:…` as `ssh-keygen -l` prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def recording_command(resolved: ResolvedHost) -> str:
    """The ssh command that shows the same key and, once confirmed, records it."""
    ask = ("-o", "StrictHostKeyChecking=ask", "-o", "BatchMode=no")
    return shlex.join(["ssh", *resolved.options, *ask, "--", resolved.destination, "true"])


def _unknown(resolved: ResolvedHost, offered: str, key: str) -> str:
    file = resolved.user_known_hosts[0] if resolved.user_known_hosts else "~/.ssh/known_hosts"
    return (
        f"{resolved.name}: the host key of {resolved.hostname}:{resolved.port} is not known: {offered}; "
        "compare it with what `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` says on the machine itself, then "
        f"record it with `{recording_command(resolved)}` "
        f"or add to {file} the line `{resolved.known_hosts_name} {key}`"
    )


def _changed(resolved: ResolvedHost, recorded: list[RecordedKey], offered: str) -> str:
    known = ", ".join(f"{key.kind} {fingerprint(key.blob)} ({key.where})" for key in recorded)
    remove = shlex.join(["ssh-keygen", "-R", resolved.known_hosts_name, "-f", str(recorded[0].file)])
    return (
        f"{resolved.name}: the host key of {resolved.hostname}:{resolved.port} CHANGED: it offers {offered}, "
        f"recorded is {known}; someone may be in between. "
        f"If the machine was reinstalled, remove the old line with `{remove}`"
    )


def _lines(name: str, path: Path) -> list[RecordedKey]:
    argv = ["ssh-keygen", "-F", name, "-f", str(path)]
    try:
        answer = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise PreflightError("no `ssh-keygen` on this machine; install the OpenSSH client") from None
    keys: list[RecordedKey] = []
    found: re.Match[str] | None = None
    for line in answer.stdout.splitlines():
        if line.startswith("#"):
            found = _FOUND.match(line)
        elif found is not None:
            keys += _parsed(path, int(found[1]), found[2] or "", line.split())
    return keys


def _parsed(path: Path, line: int, marker: str, words: list[str]) -> list[RecordedKey]:
    body = words[1:] if words and words[0].startswith("@") else words
    if len(body) < 3:
        return []
    try:
        blob = base64.b64decode(body[2], validate=True)
    except binascii.Error:
        return []  # OpenSSH skips a line it cannot read; the key then counts as unknown
    return [RecordedKey(file=path, line=line, kind=body[1], blob=blob, marker=marker)]
