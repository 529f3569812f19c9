"""The samples of a run on disk while it measures, and room for its record kept free until that is written.

A hidden file beside the run's place: one JSON line a request, as in samples.jsonl. The disk's room for the
whole record is taken by it from the start, so a disk that fills up meanwhile costs nothing. It goes when the
record is there; what a run leaves that could not write its record, or was killed, ends with zero bytes then.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path

from lean.bench.sample import Sample
from lean.contracts import BenchProfile, to_data
from lean.files.staging import check_space, named_disk_errors

_TOKEN = 96  # bytes: an arrival in the journal, in samples.jsonl and, on a line of its own, in run.json twice
_REQUEST = 12 << 10  # a request's other fields, three times
_WORD = 16  # a prompt token's text
_PAGES = 2 << 20  # report.md and plot.png
_WHAT = "the run's record"


def record_bytes(profile: BenchProfile) -> int:
    """What a run's record takes on disk, its journal beside it, at most."""
    requests = profile.clients * (profile.requests + profile.warmup_requests)
    one = _TOKEN * profile.decode_tokens + _WORD * profile.prompt_tokens + _REQUEST
    return requests * one + _PAGES


class Journal:
    """The journal of one run, made at once.

    Errors: `PreflightError` with the bytes needed and there, or when the folder cannot be written.
    """

    def __init__(self, folder: Path, run: str, needed: int) -> None:
        self.path = folder / f".{run}.{os.getpid()}.samples.jsonl"
        self.samples = 0
        self._end = 0
        with named_disk_errors(folder, f"{_WHAT} needs {needed} bytes"):
            folder.mkdir(parents=True, exist_ok=True)
            check_space(folder, needed, _WHAT)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                _take_room(self._descriptor, needed)
            except OSError:
                self.remove()
                raise

    def add(self, sample: Sample) -> None:
        """Write one sample down, unless the disk refuses: the record has it all the same."""
        line = json.dumps(to_data(sample), allow_nan=False).encode() + b"\n"
        with contextlib.suppress(OSError):
            if os.pwrite(self._descriptor, line, self._end) == len(line):
                self._end += len(line)
                self.samples += 1

    def release(self) -> None:
        """Give the room that was kept to whoever writes the record."""
        os.ftruncate(self._descriptor, self._end)

    def remove(self) -> None:
        """The record is there, or nothing was measured."""
        os.close(self._descriptor)
        self.path.unlink(missing_ok=True)


def _take_room(descriptor: int, size: int) -> None:
    """Errors: `OSError` of a disk that is full; a file system that cannot promise room is believed."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
