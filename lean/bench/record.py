"""A run record: everything one benchmark run saw, frozen, and strict reading of it from `run.json`.

Standard library and `lean.contracts` only, so that the laptop can read results it pulled. A run directory is
`<results>/v1/<host>/<profile>/<UTC>-<git sha7>[-dirty]/`; `store` writes one, nothing ever rewrites one.
"""

from __future__ import annotations

import functools
import json
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from lean.bench.dialect import PromptForm
from lean.bench.fairness import FairnessVerdict
from lean.bench.host_state import HostState
from lean.bench.load import LoadMetrics
from lean.bench.metrics import RunMetrics
from lean.bench.sample import PromptRecord, Sample, measured
from lean.contracts import BenchProfile, Contract, from_data, to_data
from lean.contracts.host import check_host_name
from lean.contracts.label import Label
from lean.errors import ContractError
from lean.in_process import InProcess
from lean.strict_json import parse_object

RUN_FILE = "run.json"
MAX_RUN_BYTES = 256 << 20

Status = Literal["ok", "invalid", "failed"]

_RUN_ID = re.compile(r"\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{7}(-dirty)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The code that ran. `diff_sha256` hashes what differed from `git_sha`, None for a clean tree."""

    id: str
    git_sha: str
    dirty: bool
    diff_sha256: str | None

    def __post_init__(self) -> None:
        if re.fullmatch(r"[0-9a-f]{7,64}", self.git_sha) is None:
            raise ValueError(f"git_sha: expected 7 to 64 hex digits, got {self.git_sha!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackFacts:
    """The pack that was served, by its LOCK.

    `source_matches`: its source is the contract's pinned revision. `source_sha256`: one hash of the weight
    files it was made of; records of versions 1 and 2 lack it.
    """

    lock: str
    lock_verified: bool
    contract_sha256: str
    weights: Literal["checkpoint", "random", "demo"]
    source_id: str | None
    source_revision: str | None
    source_matches: bool
    source_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Another system that was measured in our place.

    `packages`: `name version` of its whole environment. `command`: its server's argv. `weights_sha256`: one
    hash of its weight files by path, equal to the pack's `source_sha256` when both come of the same ones.
    `threads`: of the CPU, None where the system chose.
    """

    system: str
    version: str
    as_run: str
    dialect: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    weights_sha256: str
    source_id: str | None
    source_revision: str | None
    slots: int
    threads: int | None
    first_token_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What answered.

    `operator_coverage` is the share of a step's bytes on our own kernels (0..1), None if unsaid. `options`:
    what was set otherwise than by default, as it would be said of the run.
    """

    name: str
    device: str
    compute_dtype: str
    operator_coverage: float | None
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a run has no numbers, or numbers that do not count."""

    kind: str
    message: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The whole of run.json.

    `profile` is what ran, with `overridden` naming the fields changed on the command line. `service` is the
    ready document of the service as it was, `host_facts` what `lean.host_facts` said. `throttled` says what
    slowed the machine down; not empty makes a run invalid. A failed run carries whatever it got to.
    `in_process` is the same profile and pack without HTTP, measured before the service started, and
    `no_in_process` why there is none. Records of version 1 know neither. `peer` says that another system
    answered, and has no pack then; versions 1 and 2 are all of our own. `prompt_form`: what went over the
    wire, None where a record does not say.
    `load`: what became of a load that is not a contract's rounds, None for those.
    """

    SCHEMA: ClassVar[str] = "run/v1"

    schema_version: Literal[1, 2, 3] = 3
    id: str
    host: str
    status: Status
    failure: Failure | None
    label: Label
    label_reasons: tuple[str, ...]
    started_utc: str
    finished_utc: str
    contract: Contract
    contract_sha256: str
    profile: BenchProfile
    overridden: tuple[str, ...]
    release: Release
    pack: PackFacts | None
    backend: Backend | None
    service: dict[str, Any]
    host_facts: dict[str, Any]
    state_before: HostState | None
    state_after: HostState | None
    throttled: tuple[str, ...]
    notes: tuple[str, ...]
    fairness: FairnessVerdict
    metrics: RunMetrics
    command: tuple[str, ...]
    prompts: tuple[PromptRecord, ...]
    samples: tuple[Sample, ...]
    in_process: InProcess | None = None
    no_in_process: str | None = None
    peer: Baseline | None = None
    prompt_form: PromptForm | None = None
    load: LoadMetrics | None = None

    def __post_init__(self) -> None:
        if _RUN_ID.fullmatch(self.id) is None:
            raise ValueError(f"id: expected <UTC>-<git sha7>[-dirty], got {self.id!r}")
        check_host_name("host", self.host)

    @property
    def measured(self) -> list[Sample]:
        """The samples that count: no warm-ups."""
        return measured(self.samples)

    @property
    def place(self) -> Path:
        """Where the run lies below the results root."""
        return Path("v1", self.host, self.profile.id, self.id)


def run_id(started_utc: str, release: Release) -> str:
    """The name of a run: its start in UTC to the millisecond and the code that ran.

    `started_utc` is ISO 8601 as `datetime.isoformat(timespec="milliseconds")` writes it for UTC.
    """
    stamp = started_utc.removesuffix("+00:00").replace("-", "").replace(":", "")
    return f"{stamp}Z-{release.git_sha[:7]}" + ("-dirty" if release.dirty else "")


def dump_run(record: RunRecord) -> str:
    """run.json's text. Floats keep every digit, so reading it back gives an equal record."""
    return json.dumps(to_data(record), indent=1, allow_nan=False) + "\n"


def read_run(path: Path) -> RunRecord:
    """Read a run directory (or its run.json). Errors: `ContractError` that names the file and the field."""
    file = path / RUN_FILE if path.is_dir() else path
    data = read_json(file)
    _check_version(data, file)
    return from_data(RunRecord, data, str(file))


def _check_version(data: dict[str, Any], file: Path) -> None:
    """A record of a newer checkout is not a damaged one: say what reads it."""
    schema, version = data.get("schema"), data.get("schema_version")
    another = isinstance(schema, str) and re.fullmatch(r"run/v\d+", schema) and schema != RunRecord.SCHEMA
    if another or (type(version) is int and version > _newest_version()):
        raise ContractError(
            f"{file}: written by a newer checkout ({str(schema)[:20]}, version {str(version)[:20]}); this "
            f"one reads {RunRecord.SCHEMA} up to version {_newest_version()}: update the checkout"
        )


@functools.cache
def _newest_version() -> int:
    known: tuple[int, ...] = get_args(get_type_hints(RunRecord)["schema_version"])
    return max(known)


def read_json(file: Path) -> dict[str, Any]:
    """One JSON object from a regular file of bounded size. Errors: `ContractError` naming the file."""
    try:
        facts = file.lstat()
        if not stat.S_ISREG(facts.st_mode):
            raise ContractError(f"{file}: not a regular file; a run record holds no links, pipes or devices")
        if facts.st_size > MAX_RUN_BYTES:
            raise ContractError(f"{file}: {facts.st_size} bytes; at most {MAX_RUN_BYTES} are read")
        return parse_object(file.read_bytes(), bounded=False)
    except OSError as error:
        raise ContractError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ContractError(f"{file}: not the JSON of a record: {error}") from None
