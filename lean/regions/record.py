"""A region record: `regions.json`, every step in `steps.jsonl`, and a page, in a folder of its own.

Written once. It lies in `<results>/v1/<host>/regions/<UTC>-<git sha7>[-dirty]/`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lean.bench.record import Release, read_json
from lean.contracts import from_data, to_data
from lean.contracts.host import check_host_name
from lean.files.record_folder import write_record_folder
from lean.in_process import InProcess
from lean.leanserve.region_times import TAXONOMY
from lean.regions.summary import RegionSummary

KIND = "regions"
DOCUMENT = "regions.json"
STEPS = "steps.jsonl"
PAGE = "report.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionRecord:
    """The whole of regions.json.

    `plain` and `timed` are the same profile in process by one runner, first as it serves, then with regions
    timed. The file of timed steps has `steps_sha256`; its first `warm_up_steps` are not in the `summary`.
    """

    SCHEMA: ClassVar[str] = "region-times/v1"

    id: str
    host: str
    label: Literal["supplementary"] = "supplementary"
    taxonomy: Literal["decode-step/v1"] = TAXONOMY
    release: Release
    plain: InProcess
    timed: InProcess
    warm_up_steps: int
    summary: RegionSummary
    steps_sha256: str
    host_facts: dict[str, Any]

    def __post_init__(self) -> None:
        check_host_name("host", self.host)

    @property
    def place(self) -> Path:
        """Where the record lies below the results root."""
        return Path("v1", self.host, KIND, self.id)


def read_region_record(folder: Path) -> RegionRecord:
    """A record from its folder. Errors: `ContractError` that names the file and the field."""
    file = folder / DOCUMENT
    return from_data(RegionRecord, read_json(file), str(file))


def write_regions(record: RegionRecord, results: Path, steps: bytes, page: str) -> Path:
    """Write the record's folder; where it is. Errors: `PreflightError`."""
    place = results / record.place
    text = json.dumps(to_data(record), indent=1, allow_nan=False) + "\n"
    write_record_folder(place, {DOCUMENT: text.encode(), STEPS: steps, PAGE: page.encode()})
    return place
