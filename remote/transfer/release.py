"""What a release is: the files git knows or would know, less `results/`, named by their content."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lean.errors import PreflightError, from_document
from lean.transfer.channel import Refused
from lean.transfer.release import content_sha256
from lean.transfer.send import Source
from lean.transfer.tree import Entry, check, entry_of

SCHEMA = "release/v1"
NEVER_SENT = ("hosts.local.yaml",)
UNNAMED = ("hosts.yaml",)  # sent, but an address in it changes neither id nor dirty flag
SECRETS = (
    *(".env", ".env.*", "*.env", ".netrc", ".pypirc", ".git-credentials", "credentials", "credentials.json"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.gpg"),
    *("id_rsa", "id_dsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk"),
)
EXAMPLES = ("*.example", "*.sample", "*.template")


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A checkout at one moment. `files`: sha256 by path; of a link, the sha256 of where it points.

    `diff_sha256` covers what differs from the commit, untracked files too; None when nothing does.
    """

    id: str
    git_sha: str
    dirty: bool
    diff_sha256: str | None
    files: Mapping[str, str]
    source: Source

    def document(self) -> bytes:
        """`release.json`, written last: its presence says that the release is whole."""
        fields = {
            "schema": SCHEMA,
            "id": self.id,
            "git_sha": self.git_sha,
            "dirty": self.dirty,
            "diff_sha256": self.diff_sha256,
            "files": dict(self.files),
        }
        return json.dumps(fields, indent=1, sort_keys=True).encode() + b"\n"


def read_release(repo: Path) -> Release:
    """Read the checkout.

    Errors: `PreflightError` for no git checkout, no commit, or a file that looks like a secret.
    """
    git_sha = _git(repo, "rev-parse", "--verify", "HEAD^{commit}").strip()
    names = sorted(
        {name for name in _git(repo, "ls-files", "-coz", "--exclude-standard").split("\0") if name}
    )
    wanted = [name for name in names if not name.startswith("results/") and Path(name).name not in NEVER_SENT]
    _refuse_secrets(wanted)
    entries = _entries(repo, wanted)
    files = {entry.path: content_sha256(os.path.join(repo, entry.path)) for entry in entries}
    diff = _diff_sha256(repo, files)
    named = [entry for entry in entries if entry.path not in UNNAMED]
    lines = (f"{entry.path}\0{_kind(entry)}\0{files[entry.path]}\n" for entry in named)
    content = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return Release(
        id=f"{git_sha[:7]}-{content[:12]}",
        git_sha=git_sha,
        dirty=diff is not None,
        diff_sha256=diff,
        files=files,
        source=Source(root=str(repo), entries=entries, tree=True, expected=_regular(entries, files)),
    )


def _regular(entries: list[Entry], files: Mapping[str, str]) -> dict[str, str]:
    return {entry.path: files[entry.path] for entry in entries if entry.kind == "file"}


def _kind(entry: Entry) -> str:
    return "x" if entry.executable else entry.kind[0]


def _entries(repo: Path, names: list[str]) -> list[Entry]:
    found = []
    try:
        for name in names:
            path = os.path.join(repo, name)
            if os.path.isdir(path) and not os.path.islink(path):
                raise Refused(
                    "PreflightError", f"{name} is a git repository of its own; a release cannot hold one"
                )
            if os.path.lexists(path):  # git still lists a file that was deleted
                found.append(entry_of(path, name))
        check(found)
    except Refused as refusal:
        raise from_document(refusal.document()) from None
    if not found:
        raise PreflightError(f"git knows no file below {repo}; there is nothing to send")
    return found


def _refuse_secrets(names: list[str]) -> None:
    found = [name for name in names if _looks_secret(os.path.basename(name).lower())]
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise PreflightError(
            f"{', '.join(map(repr, found[:3]))}{more}: by its name a secret, and nothing was sent; "
            "add it to .gitignore, or move it out of the checkout"
        )


def _looks_secret(name: str) -> bool:
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in EXAMPLES):
        return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in SECRETS)


def _diff_sha256(repo: Path, files: Mapping[str, str]) -> str | None:
    """One hash over all that differs from HEAD.

    Git's own binary diff, then untracked paths with their hashes.
    """
    scope = ("--", ".", ":(exclude)results", *(f":(exclude){name}" for name in (*UNNAMED, *NEVER_SENT)))
    status = _git(repo, "status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames", *scope)
    if not status:
        return None
    plain = ("--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames")
    running = hashlib.sha256(_git(repo, "diff", *plain, "HEAD", *scope).encode("utf-8", "surrogateescape"))
    untracked = _git(repo, "ls-files", "-oz", "--exclude-standard", *scope).split("\0")
    for name in sorted(name for name in untracked if name in files):
        running.update(f"{name}\0{files[name]}\n".encode("utf-8", "surrogateescape"))
    return running.hexdigest()


def _git(repo: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        answer = subprocess.run(
            ["git", "-C", str(repo), *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=environment | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise PreflightError("no `git` on this machine; install git") from None
    if answer.returncode:
        raise _git_error(repo, answer.stderr.decode(errors="replace"))
    return answer.stdout.decode("utf-8", "surrogateescape")


def _git_error(repo: Path, said: str) -> PreflightError:
    if "not a git repository" in said:
        return PreflightError(f"{repo} is no git checkout, and a release is what git lists; use `git clone`")
    if "Needed a single revision" in said:
        return PreflightError(f"{repo} has no commit yet; commit something first")
    return PreflightError(
        f"git failed in {repo}: {said.strip().splitlines()[-1] if said.strip() else 'no reason'}"
    )
