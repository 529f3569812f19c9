"""Which of a source's files are taken: weights, configuration, tokenizer; never pickles, never code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lean.errors import PackError, UsageError
from lean.files.safe_path import MAX_FILES, check_relative_name
from lean.leanpack.checkpoint import PICKLE_SUFFIXES
from lean.leanpack.snapshot import RECORD_NAME
from lean.models.source import RemoteFile

DEFAULT_ALLOW = ("*.safetensors", "*.json", "*.txt", "*.jinja", "LICENSE", "README.md")
CODE_SUFFIXES = (".py", ".sh", ".so", ".dll", ".dylib", ".exe", ".pyc", ".whl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """`refused` are files the patterns name, or a checkpoint usually has, that we never take."""

    chosen: tuple[RemoteFile, ...]
    refused: tuple[str, ...]


def select(files: Iterable[RemoteFile], allow: tuple[str, ...], origin: str) -> Selection:
    """The files that match `allow`. A pattern is a shell one over the whole path; `*` crosses slashes.

    Errors: `PackError` for a chosen file whose name is unsafe or listed twice; `UsageError` when nothing is
    left.
    """
    chosen: dict[str, RemoteFile] = {}
    refused: list[str] = []
    for file in files:
        if file.path.endswith((*PICKLE_SUFFIXES, *CODE_SUFFIXES)):
            refused.append(file.path[:200])
        elif any(fnmatchcase(file.path, pattern) for pattern in allow) and file.path != RECORD_NAME:
            check_relative_name(file.path, origin)
            if file.path in chosen:
                raise PackError(f"{origin}: lists {file.path} twice")
            chosen[file.path] = file
        if len(chosen) + len(refused) > MAX_FILES:
            raise PackError(f"{origin}: lists more than {MAX_FILES} files")
    if not chosen:
        reason = f"; pickles and code are never taken: {', '.join(sorted(refused)[:3])}" if refused else ""
        raise UsageError(f"{origin}: nothing matches {', '.join(allow)}{reason}")
    return Selection(chosen=tuple(chosen[name] for name in sorted(chosen)), refused=tuple(sorted(refused)))
