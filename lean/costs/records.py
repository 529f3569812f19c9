"""A results folder of many whole run records, for timing what reads such folders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lean.bench.record import RunRecord, read_run, run_id
from lean.bench.store import write_raw
from lean.bench.sums import RAW_FILES, write_sums
from lean.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What was made: how many run directories, their bytes, and the names of the first and the last."""

    count: int
    bytes: int
    first: str
    last: str


def make_records(*, like: Path, out: Path, count: int) -> Records:
    """Write `count` records into the new folder `out`, each as `like` and a minute after the one before.

    Errors: `UsageError` when `out` exists or `count` is below 2; else those of `read_run`.
    """
    if count < 2:
        raise UsageError(f"--count {count}: expected at least 2")
    if out.exists():
        raise UsageError(f"{out}: exists; name a new folder")
    record = _later(read_run(like), 0)
    first = out / record.place
    first.mkdir(parents=True)
    write_raw(first, record, ())
    texts = {name: (first / name).read_text(encoding="utf-8") for name in RAW_FILES}
    for number in range(1, count):
        later = _later(record, number)
        folder = first.with_name(later.id)
        folder.mkdir()
        for name, text in texts.items():
            (folder / name).write_text(_renamed(text, record, later), encoding="utf-8")
        write_sums(folder, RAW_FILES)
    size = sum(file.stat().st_size for file in first.iterdir())
    return Records(count=count, bytes=count * size, first=record.id, last=_later(record, count - 1).id)


def _renamed(text: str, record: RunRecord, later: RunRecord) -> str:
    """The text with another name and start: writing each record anew would take thirty times as long."""
    text = text.replace(f'"id": "{record.id}"', f'"id": "{later.id}"', 1)
    return text.replace(f'"started_utc": "{record.started_utc}"', f'"started_utc": "{later.started_utc}"', 1)


def _later(record: RunRecord, minutes: int) -> RunRecord:
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    started = at.isoformat(timespec="milliseconds")
    return replace(record, started_utc=started, id=run_id(started, record.release))
