"""A soak plan: arms that differ in options, phases that each arm goes through, thresholds of the verdict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from lean.contracts.contract import Encoding
from lean.contracts.systems import SYSTEMS

OURS = "leanserve"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
SHA256 = re.compile(r"[0-9a-f]{64}")

Control = Literal["weights", "slower", "cut"]
PhaseName = Literal["quality", "conversations", "long_decode", "concurrent"]
PHASES: tuple[PhaseName, ...] = ("quality", "conversations", "long_decode", "concurrent")  # A, B, C, D


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One value of what the soak decides about: an engine and its options, None leaving the engine's own.

    `engine`: ours, or another system by its name. `control`: an arm that is damaged on purpose, so that a
    plan shows that its rules catch damage: `weights` are perturbed, every token is 6 % `slower`, or every
    tenth answer is `cut`. `artifacts`: the supplementary passes that the arm goes through, by name, each
    of which must leave its artifact.
    """

    name: str
    engine: str = OURS
    encoding: Encoding | None = None
    runner: Literal["torch", "cuda"] | None = None
    slots: int | None = None
    bucket: int | None = None
    threads: int | None = None
    split_k: int | None = None
    control: Control | None = None
    artifacts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if NAME.fullmatch(self.name) is None:
            raise ValueError(f"name: expected lower-case letters, digits, '_' and '-', got {self.name!r}")
        if self.engine not in (OURS, *SYSTEMS):
            raise ValueError(f"engine: expected one of {', '.join((OURS, *SYSTEMS))}, got {self.engine!r}")
        options = ("encoding", "runner", "bucket", "split_k", "control")
        given = [name for name in options if getattr(self, name) is not None]
        if self.engine != OURS and given:
            raise ValueError(f"{given[0]}: an option of {OURS}, and the engine is {self.engine}")
        for name in ("slots", "bucket", "split_k"):
            value = getattr(self, name)
            if value not in (None, 1, 2, 4, 8):
                raise ValueError(f"{name}: expected 1, 2, 4 or 8, got {value}")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise ValueError(f"threads: expected 1 to 1024, got {self.threads}")
        if self.control == "weights" and self.encoding not in (None, "bf16"):
            raise ValueError(f"control: weights are perturbed in bf16, not in {self.encoding}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A file of tasks or conversations, pinned by its hash.

    `file` is a name in `profiles/soak/data`, or of a file that the user pushed into the host's `soak/data`.
    """

    file: str
    sha256: str

    def __post_init__(self) -> None:
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.file) is None:
            raise ValueError(f"file: expected a plain file name, got {self.file!r}")
        if SHA256.fullmatch(self.sha256) is None:
            raise ValueError("sha256: expected 64 lower-case hexadecimal digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityPhase:
    """A: scored tasks, one after another, `new_tokens` greedy tokens each. `tasks`: the first so many."""

    data: DataFile
    format: Literal["tasks", "gsm8k"] = "tasks"
    tasks: int = 50
    new_tokens: int

    def __post_init__(self) -> None:
        _check_counts(self, tasks=1, new_tokens=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationPhase:
    """B: conversations of mixed length, replayed turn by turn with the file's own earlier answers.

    `prompt_tokens`: turns with longer prompts are left out, and that before `conversations` are counted.
    """

    data: DataFile
    format: Literal["turns", "sharegpt"] = "turns"
    conversations: int
    prompt_tokens: int
    new_tokens: int
    replays: int = 5

    def __post_init__(self) -> None:
        _check_counts(self, conversations=1, prompt_tokens=1, new_tokens=2, replays=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LongDecodePhase:
    """C: one long answer a replay, with the end of sequence ignored."""

    prompt_tokens: int
    new_tokens: int
    replays: int = 5

    def __post_init__(self) -> None:
        _check_counts(self, prompt_tokens=1, new_tokens=2, replays=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrentPhase:
    """D: `streams` requests with different prompts at once, a replay waiting for all of them."""

    prompt_tokens: int
    new_tokens: int
    streams: int = 2
    replays: int = 5

    def __post_init__(self) -> None:
        _check_counts(self, prompt_tokens=1, new_tokens=2, streams=2, replays=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupplementaryPass:
    """A pass with instruments, after all arms' primary passes: one replay of conversations, never judged.

    `regions`: the engine writes the times of each step's regions. `wrap`: the engine runs under this command,
    a profiler's, in which `{artifact}` is where its output goes; it gets `stop_s` seconds to end.
    """

    name: str
    regions: bool = False
    wrap: tuple[str, ...] = ()
    stop_s: float = 60.0

    def __post_init__(self) -> None:
        if NAME.fullmatch(self.name) is None:
            raise ValueError(f"name: expected lower-case letters, digits, '_' and '-', got {self.name!r}")
        if self.regions == bool(self.wrap):
            raise ValueError("regions: a pass times regions or wraps the engine, one of the two")
        if self.wrap and not any("{artifact}" in word for word in self.wrap):
            raise ValueError("wrap: no word holds {artifact}, so its output would be lost")
        if not 0 < self.stop_s <= 600:
            raise ValueError(f"stop_s: expected more than 0 and at most 600, got {self.stop_s:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When an arm is called what. Counts are of tasks and replays, the others shares of the baseline's.

    `floor`: the least score of any arm, `drop`: points below the baseline that are still accepted.
    """

    floor: int = 30
    drop: int = 2
    replays: int = 5
    regression: float = 0.02
    gain: float = 0.05

    def __post_init__(self) -> None:
        for name in ("floor", "drop"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.replays < 2:
            raise ValueError(
                f"replays: expected at least 2, for there is no spread of one, got {self.replays}"
            )
        for name in ("regression", "gain"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a share between 0 and 1, got {getattr(self, name):g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Deadlines in seconds: until an engine is ready, a connection, the next bytes, an engine's end.

    `request_s` is of a whole answer, however steadily it comes.
    """

    ready_s: float = 1200.0
    connect_s: float = 10.0
    read_s: float = 900.0
    supplementary_read_s: float = 1800.0
    request_s: float = 7200.0
    stop_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("ready_s", "connect_s", "read_s", "supplementary_read_s", "request_s", "stop_s"):
            if not 0 < getattr(self, name) <= 86_400:
                raise ValueError(
                    f"{name}: expected more than 0 and at most 86400, got {getattr(self, name):g}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakPlan:
    """`baseline` names the arm that the others are judged against.

    `starts`: how often each arm's engine is started. The replays of a phase are shared among the starts, and
    the arms take turns, so that what differs from start to start, or from hour to hour, is in every arm's
    spread: of one start it would look like a difference between arms. As many as the replays that a verdict
    needs when left out.
    """

    SCHEMA: ClassVar[str] = "soak/v1"

    id: str
    about: str
    baseline: str
    arms: tuple[Arm, ...]
    conversations: ConversationPhase
    quality: QualityPhase | None = None
    long_decode: LongDecodePhase | None = None
    concurrent: ConcurrentPhase | None = None
    supplementary: tuple[SupplementaryPass, ...] = ()
    thresholds: Thresholds = Thresholds()
    limits: Limits = Limits()
    starts: int | None = None
    seed: int = 7

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        _check_once("arms", names)
        _check_once("supplementary", [one.name for one in self.supplementary])
        if len(names) < 2:
            raise ValueError("arms: expected at least two, for there is nothing to judge")
        if self.baseline not in names:
            raise ValueError(f"baseline: no arm named {self.baseline!r}; the arms: {', '.join(names)}")
        if self.arm(self.baseline).control is not None:
            raise ValueError(
                f"baseline: {self.baseline!r} is damaged on purpose; nothing is judged against it"
            )
        if self.conversations.replays < self.thresholds.replays:
            raise ValueError(
                f"conversations.replays: {self.conversations.replays}, and thresholds.replays wants "
                f"{self.thresholds.replays}: nothing could be judged"
            )
        if self.starts is not None and not 1 <= self.starts <= self.thresholds.replays:
            raise ValueError(
                f"starts: expected 1 to thresholds.replays, {self.thresholds.replays}, got {self.starts}"
            )
        passes = {one.name for one in self.supplementary}
        for arm in self.arms:
            unknown = next((name for name in arm.artifacts if name not in passes), None)
            if unknown is not None:
                raise ValueError(f"arms: {arm.name}: no supplementary pass named {unknown!r} leaves that")
        if self.concurrent is not None:
            for arm in self.arms:
                if (arm.slots or self.concurrent.streams) < self.concurrent.streams:
                    raise ValueError(
                        f"arms: {arm.name}: {arm.slots} slot(s), and concurrent has "
                        f"{self.concurrent.streams} streams"
                    )
        if self.quality is not None and self.thresholds.floor > self.quality.tasks:
            raise ValueError(
                f"thresholds.floor: {self.thresholds.floor} of {self.quality.tasks} tasks cannot be reached"
            )

    def arm(self, name: str) -> Arm:
        """The arm of this name. Errors: `KeyError`."""
        return {arm.name: arm for arm in self.arms}[name]

    @property
    def phases(self) -> tuple[PhaseName, ...]:
        """The phases that the plan has, in their order."""
        return tuple(name for name in PHASES if getattr(self, name) is not None)

    def replays(self, phase: PhaseName) -> int:
        """How often a phase is replayed; quality is answered once, for it is greedy."""
        return 1 if phase == "quality" else int(getattr(self, phase).replays)

    @property
    def twins(self) -> tuple[str, ...]:
        """Arms that are what the baseline is: whatever a verdict says of one is chance."""
        same = replace(self.arm(self.baseline), artifacts=())
        return tuple(
            arm.name
            for arm in self.arms
            if arm.name != self.baseline and replace(arm, name=self.baseline, artifacts=()) == same
        )

    @property
    def rounds(self) -> int:
        """How often each arm's engine is started."""
        return self.thresholds.replays if self.starts is None else self.starts

    def numbers(self, phase: PhaseName, start: int) -> tuple[int, ...]:
        """The replays of a phase, from 1, that an arm does in its start `start`, from 0."""
        return tuple(range(1 + start, self.replays(phase) + 1, self.rounds))

    @property
    def slots(self) -> int:
        """Streams that an engine must serve at once, where an arm does not say."""
        return 1 if self.concurrent is None else self.concurrent.streams


def _check_once(field: str, names: Sequence[str]) -> None:
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"{field}: {double!r} is there twice")


def _check_counts(phase: object, **least: int) -> None:
    for name, low in least.items():
        value = getattr(phase, name)
        if not low <= value <= 1_000_000:
            raise ValueError(f"{name}: expected {low} or more, got {value}")
