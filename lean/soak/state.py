"""The folder of one soak on its host: what survives a kill and a reboot.

    <UTC>-<plan>/plan.json                       the plan and its hash, written once
                 journal.jsonl                   what happened, each event with boot id and pid
                 arms/<arm>/arm.json             asked and effective settings, written once
                 arms/<arm>/<phase>/phase.json   the hash of the phase's configuration
                                    replay-1.jsonl …    whole replays
                                    replay-3.partial    one that runs, or that was cut
                                    incomplete/  cut replays, kept and never counted
                                    DONE         the configuration's hash, and each replay's
                 superseded/<UTC>/               the arms as they were before all was done anew

A replay is whole or is done anew; a phase is done when DONE says so for the very configuration that is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from lean.contracts import from_data, to_data
from lean.contracts.soak import PhaseName, SoakPlan
from lean.errors import ContractError, IntegrityError, NotReadyError
from lean.files.exclusive import hold
from lean.files.hashing import sha256_file
from lean.files.staging import named_disk_errors, replace_file
from lean.jobs.process import boot_id
from lean.soak.rows import Row, read_rows
from lean.strict_json import parse_object

ARMS = "arms"
PLAN, JOURNAL, ARM, PHASE, DONE, FINISHED = (
    *("plan.json", "journal.jsonl", "arm.json", "phase.json", "DONE", "FINISHED"),
)


def digest(document: Any) -> str:
    """One hash of a JSON-able document."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def now_utc() -> str:
    """This moment, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class SoakState:
    """One soak's folder. What is written is on the disk at once, rows of a running replay apart."""

    def __init__(self, folder: Path, plan: SoakPlan) -> None:
        self.folder, self.plan = folder, plan

    @classmethod
    def new(cls, root: Path, plan: SoakPlan) -> SoakState:
        """A new folder for `plan`. Errors: `PreflightError` for a full or closed disk."""
        stamp = datetime.now(UTC)
        folder = root / f"{stamp:%Y%m%dT%H%M%S}.{stamp.microsecond // 1000:03}Z-{plan.id}"
        with named_disk_errors(root, "the soak's folder"):
            folder.mkdir(parents=True)
            replace_file(folder / PLAN, json.dumps(to_data(plan), indent=1) + "\n")
        return cls(folder, plan)

    @classmethod
    def newest(cls, root: Path, name: str) -> SoakState:
        """The newest soak of the plan `name`, or the one in the folder of that name.

        Errors: `NotReadyError` naming those there are, `ContractError` for a plan file that was changed.
        """
        folders = sorted(file.parent for file in root.glob(f"*/{PLAN}"))
        fitting = [folder for folder in folders if name in (folder.name, folder.name.partition("Z-")[2])]
        if not fitting:
            known = ", ".join(folder.name for folder in folders) or "none"
            raise NotReadyError(f"no soak {name!r} in {root}; there: {known}")
        file = fitting[-1] / PLAN
        try:
            return cls(fitting[-1], from_data(SoakPlan, parse_object(file.read_bytes()), str(file)))
        except (OSError, ValueError) as error:
            raise ContractError(f"{file}: no plan of a soak: {error}") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while the soak runs. Errors: `PreflightError` naming the process that runs it already."""
        with hold(self.folder / "lock", f"the soak {self.folder.name}"):
            yield

    def note(self, event: str, **facts: object) -> None:
        """Append an event to the journal; one that a crash cut short stays a line of its own."""
        line = {"at_utc": now_utc(), "boot_id": boot_id(), "pid": os.getpid(), "event": event, **facts}
        with named_disk_errors(self.folder, "the soak's journal"), (self.folder / JOURNAL).open("ab") as file:
            if file.tell() and not _ends_a_line(self.folder / JOURNAL):
                file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> tuple[dict[str, Any], ...]:
        """The journal, without lines that a crash cut short."""
        found = []
        try:
            lines = (self.folder / JOURNAL).read_bytes().splitlines()
        except FileNotFoundError:
            return ()
        for line in lines:
            try:
                found.append(parse_object(line))
            except ValueError:
                continue
        return tuple(found)

    def current_events(self) -> tuple[dict[str, Any], ...]:
        """The journal since all was begun anew the last time."""
        events = self.events()
        anew = [number for number, event in enumerate(events) if event.get("force") is True]
        return events[anew[-1] :] if anew else events

    def arm_facts(self, arm: str) -> dict[str, Any] | None:
        """What was written of an arm when it first ran, None before."""
        return _read_json(self._arm(arm) / ARM)

    def keep_arm(self, arm: str, facts: Mapping[str, Any]) -> None:
        """Write an arm's facts, once; later ones go into the journal."""
        if self.arm_facts(arm) is None:
            self._write(self._arm(arm) / ARM, facts)

    def phase(self, arm: str, phase: str, config: Any) -> PhaseState:
        """An arm's phase, or supplementary pass, under this configuration."""
        return PhaseState(self._arm(arm) / phase, digest(config))

    def rows(self, arm: str, phase: PhaseName) -> tuple[tuple[Row, ...], ...]:
        """Every whole replay of an arm's phase, whatever it was configured as. Errors: `IntegrityError`."""
        return PhaseState(self._arm(arm) / phase, "").read()

    def numbered(self, arm: str, phase: PhaseName) -> tuple[tuple[int, tuple[Row, ...]], ...]:
        """`rows` with each replay's number."""
        state = PhaseState(self._arm(arm) / phase, "")
        return tuple(zip(sorted(state.whole), state.read(), strict=True))

    def incomplete(self) -> tuple[str, ...]:
        """The files of replays that were cut, below the folder."""
        found = [*self.folder.glob("arms/*/*/incomplete/*.jsonl"), *self.folder.glob("arms/*/*/*.partial")]
        return tuple(sorted(file.relative_to(self.folder).as_posix() for file in found))

    def supersede(self) -> None:
        """Set all that the arms left aside, whole: everything is to be done anew."""
        with named_disk_errors(self.folder, "the soak's folder"):
            (self.folder / FINISHED).unlink(missing_ok=True)
            if (self.folder / ARMS).exists():
                aside = self.folder / "superseded" / now_utc()
                aside.parent.mkdir(exist_ok=True)
                (self.folder / ARMS).rename(aside)

    @property
    def finished(self) -> bool:
        """Whether it came to its verdicts with every phase of every arm done or given up."""
        return (self.folder / FINISHED).exists()

    @property
    def journal(self) -> bytes:
        """The journal's file as it is."""
        return (self.folder / JOURNAL).read_bytes()

    def finish(self, place: str) -> None:
        """Say that it is over, and where its record is."""
        self._write(self.folder / FINISHED, {"record": place, "at_utc": now_utc()})

    def _arm(self, arm: str) -> Path:
        return self.folder / ARMS / arm

    def _write(self, file: Path, document: Mapping[str, Any]) -> None:
        with named_disk_errors(self.folder, f"the soak's {file.name}"):
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, json.dumps(document, indent=1) + "\n")


@dataclass(frozen=True, slots=True)
class PhaseState:
    """One phase of one arm, or one supplementary pass: its folder and the hash of its configuration."""

    folder: Path
    config_sha256: str

    @property
    def done(self) -> bool:
        """Whether it is done as configured. Errors: as of `begin`, and `IntegrityError` for changed rows."""
        document = _read_json(self.folder / DONE)
        if document is None:
            return False
        self._check_same(document, self.folder / DONE)
        self._check_files(document["replays"])
        return True

    @property
    def whole(self) -> frozenset[int]:
        """The numbers of its whole replays."""
        return frozenset(number for number, _ in self._replays())

    def begin(self, *, keep: bool = True) -> None:
        """Make ready to go on; a replay that was cut is set aside, and without `keep` whole ones too.

        Errors: `ContractError` when it was begun under another configuration.
        """
        with named_disk_errors(self.folder, "the soak's folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
            begun = _read_json(self.folder / PHASE)
            if begun is None:
                replace_file(self.folder / PHASE, json.dumps({"config_sha256": self.config_sha256}) + "\n")
            else:
                self._check_same(begun, self.folder / PHASE)
            for left in self.folder.glob("replay-*.partial" if keep else "replay-*.*"):
                aside = self.folder / "incomplete" / f"{left.stem}-{now_utc()}.jsonl"
                aside.parent.mkdir(exist_ok=True)
                left.rename(aside)

    @contextmanager
    def replay(self, number: int) -> Iterator[ReplayWriter]:
        """Write one replay's rows; it counts once the block has ended without an error."""
        partial = self.folder / f"replay-{number}.partial"
        with named_disk_errors(self.folder, f"replay {number}"):
            with partial.open("xb") as file:
                yield ReplayWriter(file)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self.folder / f"replay-{number}.jsonl")

    def finish(self) -> None:
        """Say that the phase is done."""
        document = {
            "config_sha256": self.config_sha256,
            "finished_utc": now_utc(),
            "replays": {str(number): sha256_file(file) for number, file in self._replays()},
        }
        with named_disk_errors(self.folder, "the soak's folder"):
            replace_file(self.folder / DONE, json.dumps(document, indent=1) + "\n")

    def read(self) -> tuple[tuple[Row, ...], ...]:
        """Its whole replays. Errors: `IntegrityError` for a file that is not what DONE says of it."""
        document = _read_json(self.folder / DONE)
        if document is not None:
            self._check_files(document["replays"])
        return tuple(read_rows(file) for _, file in self._replays())

    def _replays(self) -> list[tuple[int, Path]]:
        found = [
            (int(file.stem.removeprefix("replay-")), file) for file in self.folder.glob("replay-*.jsonl")
        ]
        return sorted(found)

    def _check_same(self, document: Mapping[str, Any], file: Path) -> None:
        if document.get("config_sha256") != self.config_sha256:
            raise ContractError(
                f"{file}: this phase was begun with another configuration "
                f"({str(document.get('config_sha256'))[:8]}, now {self.config_sha256[:8]}): the plan, its "
                "data, the pack or the code changed; --resume --force does everything anew and keeps the old "
                "rows aside"
            )

    def _check_files(self, listed: Mapping[str, str]) -> None:
        strange = {str(number) for number in self.whole} - set(listed)
        if strange:
            raise IntegrityError(
                f"{self.folder}: replay {min(strange)} is not in {DONE}; take the file away, or do "
                "everything anew with --resume --force"
            )
        for number, expected in listed.items():
            file = self.folder / f"replay-{number}.jsonl"
            found = sha256_file(file) if file.exists() else "nothing"
            if found != expected:
                raise IntegrityError(
                    f"{file}: changed since it was written (sha256 {found[:12]}, then {expected[:12]}); "
                    "--resume --force does everything anew"
                )


class ReplayWriter:
    """Rows of a replay that runs. Each is in the file at once; it is on the disk when the replay ends."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def append(self, row: Row) -> None:
        """Write one row. Errors: `OSError`."""
        self._file.write(row.line().encode())
        self._file.flush()


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        return parse_object(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{file}: cannot be read: {error}; --resume --force does everything anew"
        ) from None


def _ends_a_line(file: Path) -> bool:
    with file.open("rb") as opened:
        opened.seek(-1, os.SEEK_END)
        return opened.read(1) == b"\n"
