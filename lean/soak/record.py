"""A soak's record: `soak.json`, every whole replay's rows, what happened, the page and its figures.

Written once. It lies in `<results>/v1/<host>/soak/<UTC>-<plan>-<git sha7>[-dirty]/`, with SHA256SUMS of what
is not made from soak.json.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lean.bench.record import Release
from lean.contracts import to_data
from lean.contracts.soak import SoakPlan
from lean.files.record_folder import write_record_folder
from lean.soak.rows import Row
from lean.soak.state import SoakState

KIND = "soak"
DOCUMENT, ROWS, JOURNAL = "soak.json", "rows.jsonl.gz", "journal.jsonl"
PAGE, SUMS = "report.md", "SHA256SUMS"


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakRecord:
    """The whole of soak.json.

    `complete`: every phase of every arm is there; `why_not` names what lacks. `arms`: each arm's facts as
    they were kept when it first ran. `summaries` and `verdicts` are made from the rows and the plan's
    thresholds, and can be made again. `incomplete`: files of cut replays, which stay on the host.
    """

    SCHEMA: ClassVar[str] = "soak-record/v1"

    id: str
    host: str
    release: Release
    plan: SoakPlan
    contract: str
    pack_lock: str
    label: Literal["exploratory"]
    label_reasons: tuple[str, ...]
    started_utc: str
    finished_utc: str
    complete: bool
    why_not: tuple[str, ...]
    host_facts: dict[str, Any]
    arms: dict[str, Any]
    summaries: tuple[Any, ...]
    verdicts: tuple[Any, ...]
    incomplete: tuple[str, ...]

    @property
    def place(self) -> Path:
        """Where the record lies below the results root."""
        return Path("v1", self.host, KIND, self.id)


def rows_file(state: SoakState) -> bytes:
    """Every row of every whole replay with its place, gzipped; the same rows, the same bytes."""
    lines = [
        _line(arm.name, phase, number, row)
        for arm in state.plan.arms
        for phase in state.plan.phases
        for number, replay in state.numbered(arm.name, phase)
        for row in replay
    ]
    return gzip.compress("".join(lines).encode(), mtime=0)


def write_soak(record: SoakRecord, results: Path, state: SoakState, pages: Mapping[str, bytes]) -> Path:
    """Write the record's folder, with `pages` made from it; where it is. Errors: `PreflightError`."""
    text = json.dumps(to_data(record), indent=1, allow_nan=False) + "\n"
    raw = {DOCUMENT: text.encode(), ROWS: rows_file(state), JOURNAL: state.journal}
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in raw.items())
    place = results / record.place
    write_record_folder(place, raw | {SUMS: sums.encode()} | dict(pages))
    return place


def _line(arm: str, phase: str, replay: int, row: Row) -> str:
    head = json.dumps({"arm": arm, "phase": phase, "replay": replay})
    return f"{head[:-1]},{row.line()[1:]}"
