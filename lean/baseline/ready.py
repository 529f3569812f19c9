"""What is said of a baseline's server when it is ready, and how it ended: documents that the laptop reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lean.baseline.memory import Memory
from lean.contracts import to_data
from lean.files.staging import replace_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """It listens at `url`, of this host only, and a real token came out after `first_token_seconds`.

    `pid`: of the program that keeps it. `model`: its name in requests; `model_directory`: the checkpoint.
    `length`: positions a stream may take. `packages`: `name version` of its whole environment. `memory`: as
    read `before` it started, and when it was `serving`.
    """

    SCHEMA: ClassVar[str] = "baseline-service/v1"

    pid: int
    url: str
    port: int
    system: str
    version: str
    as_run: str
    dialect: str
    model: str
    model_directory: str
    weights_sha256: str
    source_id: str | None
    source_revision: str | None
    device: str
    compute_dtype: str
    slots: int
    threads: int | None
    length: int
    command: tuple[str, ...]
    settings: dict[str, str]
    packages: tuple[str, ...]
    first_token_seconds: float
    deadline_seconds: float
    memory: dict[str, Memory]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """It was told to end and did. `verdict`: in words; `memory`: also as read `after` it was gone."""

    SCHEMA: ClassVar[str] = "baseline-service/v1-ended"

    system: str
    processes_gone: bool
    memory_returned: bool
    verdict: str
    memory: dict[str, Memory]


def ended_file(ready_file: Path) -> Path:
    """Where it says how the last one ended."""
    return ready_file.with_name(f"{ready_file.name}.ended.json")


def write_document(document: Ready | Ended, file: Path) -> None:
    """Write it whole over what is there."""
    replace_file(file, json.dumps(to_data(document), indent=1) + "\n")
