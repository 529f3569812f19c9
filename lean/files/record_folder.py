"""A record's folder: its files written beside its place, then renamed there; written once, never again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lean.errors import PreflightError
from lean.files.staging import publish, staged_directory, write_file


def write_record_folder(place: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder `place` of these files, all of them or nothing. Errors: `PreflightError`."""
    if place.exists():
        raise PreflightError(f"{place}: exists; a record is never rewritten")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with staged_directory(place.with_name(f".{place.name}.partial")) as staging:
            for name, data in files.items():
                write_file(staging, name, data)
            publish(staging, place)
    except OSError as error:
        raise PreflightError(
            f"{place}: cannot be written: {error.strerror}; give another --results"
        ) from None
