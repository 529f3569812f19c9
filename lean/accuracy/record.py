"""An accuracy record: `accuracy.json` and its page, in a folder of its own, written once.

It lies in `<results>/v1/<host>/accuracy/<UTC>-<git sha7>[-dirty]/`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lean.accuracy.compare import PromptAccuracy, Summary
from lean.bench.record import Release, read_json
from lean.contracts import Encoding, from_data, to_data
from lean.contracts.host import check_host_name
from lean.files.record_folder import write_record_folder

KIND = "accuracy"
DOCUMENT = "accuracy.json"
PAGE = "report.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two packs, and what ran it. `weight_bytes`: of the pack's tensors."""

    contract: str
    encoding: Encoding
    lock: str
    weights: Literal["checkpoint", "random", "demo"]
    weight_bytes: int
    runner: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The text that prompts and losses are taken from, by its file name and hash; its length in tokens."""

    name: str
    sha256: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Nats a token over `tokens` predicted tokens in windows of `window`; `ratio`: the pack's over bf16's."""

    tokens: int
    window: int
    reference_nats: float
    nats: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyRecord:
    """The whole of accuracy.json. `loss` is None where nobody knows that the text is new to the model."""

    SCHEMA: ClassVar[str] = "accuracy/v1"

    id: str
    host: str
    label: Literal["exploratory"] = "exploratory"
    label_reasons: tuple[str, ...]
    started_utc: str
    finished_utc: str
    release: Release
    pack: Side
    reference: Side
    text: Text
    summary: Summary
    loss: Loss | None
    prompts: tuple[PromptAccuracy, ...]
    host_facts: dict[str, Any]

    def __post_init__(self) -> None:
        check_host_name("host", self.host)

    @property
    def place(self) -> Path:
        """Where the record lies below the results root."""
        return Path("v1", self.host, KIND, self.id)


def read_accuracy(folder: Path) -> AccuracyRecord:
    """A record from its folder. Errors: `ContractError` that names the file and the field."""
    file = folder / DOCUMENT
    return from_data(AccuracyRecord, read_json(file), str(file))


def write_accuracy(record: AccuracyRecord, results: Path, page: str) -> Path:
    """Write the record's folder; where it is. Errors: `PreflightError`."""
    place = results / record.place
    text = json.dumps(to_data(record), indent=1, allow_nan=False) + "\n"
    write_record_folder(place, {DOCUMENT: text.encode(), PAGE: page.encode()})
    return place
