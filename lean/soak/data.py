"""The files a plan asks from: found by name, held to the pinned hash, read line by line without trust."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lean.contracts.soak import DataFile
from lean.errors import ContractError, IntegrityError, NotReadyError
from lean.files.hashing import sha256_file
from lean.strict_json import parse_object

MAX_BYTES = 64 << 20  # of a file; ShareGPT whole is ten times that, and a soak asks a few hundred turns of it
MAX_LINE = 1 << 20


def find_data(data: DataFile, folders: Sequence[Path]) -> Path:
    """The file in the first of `folders` that has one of its name: the release's, then the host's.

    Errors: `NotReadyError` where no folder has it, `IntegrityError` where its hash is not the pinned one.
    """
    assert folders
    for folder in folders:
        path = folder / data.file
        if path.is_file():
            found = sha256_file(path)
            if found != data.sha256:
                raise IntegrityError(
                    f"{path}: sha256 is {found}, and the plan pins {data.sha256}; put the pinned file there, "
                    "or pin this one in the plan"
                )
            return path
    raise NotReadyError(
        f"{data.file}: not in {' nor '.join(map(str, folders))}; push it: "
        f"invoke remote.push --source {data.file} --target {folders[-1] / data.file}"
    )


def read_whole(file: Path) -> bytes:
    """The bytes of a file. Errors: `ContractError` when it is larger than `MAX_BYTES` or cannot be read."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise ContractError(f"{file}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise ContractError(f"{file}: more than {MAX_BYTES >> 20} MiB; cut a slice of it and pin that")
    return content


def read_objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line's number, from 1, and JSON object.

    Errors: `ContractError` naming the line that is none, is empty or is longer than `MAX_LINE` bytes.
    """
    lines = read_whole(file).removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise bad_line(file, number, "empty")
        if len(line) > MAX_LINE:
            raise bad_line(file, number, f"more than {MAX_LINE >> 20} MiB")
        try:
            document = parse_object(line)
        except ValueError as error:
            raise bad_line(file, number, str(error)) from None
        yield number, document


def bad_line(file: Path, number: int, why: str) -> ContractError:
    """What to raise for a line that cannot be used."""
    return ContractError(f"{file}: line {number}: {why}")


def text_of(document: dict[str, Any], name: str) -> str:
    """A field that must be text with something in it. Errors: `ValueError`."""
    value = document.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: expected text, got {str(value)[:40]!r}")
    return value


def only_fields(document: dict[str, Any], *names: str) -> None:
    """Raise `ValueError` for a field that is not one of `names`."""
    unknown = sorted(set(document) - set(names))
    if unknown:
        raise ValueError(f"unknown field {unknown[0][:40]!r}; known: {', '.join(names)}")
