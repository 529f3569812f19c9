"""The order of a soak: every arm through its primary phases, then the supplementary passes of all arms.

The arms take turns: each start of an arm's engine does its share of the replays before the next arm's.
What is done is not done again; what was cut is kept aside and done anew. An arm whose engine fails is
given up with the reason, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lean.bench.host_state import read_host_state, throttle_reasons
from lean.contracts import to_data
from lean.contracts.soak import OURS, Arm, Limits, PhaseName, SoakPlan, SupplementaryPass
from lean.errors import ContractError, Interrupted, LeanError, NotReadyError
from lean.soak.engine import (
    ARTIFACT,
    Engine,
    EngineInputs,
    Instruments,
    end_left_behind,
    expected,
    serving,
)
from lean.soak.phases import run_replay
from lean.soak.rows import ArmRows, Row
from lean.soak.state import ARMS, PhaseState, SoakState
from lean.soak.workload import Request, Workload

_WARM = 32  # tokens of a request that warms an engine up
GIVEN_UP, PASS_ENDED = "arm given up", "pass ended"
PASS_DONE, NOT_WHOLE = "done", "not run: the arm is not through its phases"


class StartEngine(Protocol):
    """How an arm's engine is started; `lean.soak.engine.serving` is the real one."""

    def __call__(
        self,
        arm: Arm,
        inputs: EngineInputs,
        limits: Limits,
        *,
        slots: int,
        length: int,
        folder: Path,
        instruments: Instruments | None = None,
    ) -> AbstractContextManager[Engine]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """One soak under way: its folder, what is asked, what engines start from, and who hears of progress."""

    state: SoakState
    workload: Workload
    inputs: EngineInputs
    lock: str
    release: str
    say: Callable[[str], None]
    force: bool = False
    start_engine: StartEngine = serving

    @property
    def plan(self) -> SoakPlan:
        """The plan that the folder holds."""
        return self.state.plan


def run_soak(soak: Soak) -> None:
    """Do what is missing. Errors: `Interrupted`, and `PreflightError` for a full disk; both can be resumed.

    `ContractError` and `IntegrityError` for a phase that was begun otherwise or changed since, before
    anything runs.
    """
    try:
        run = _Run(soak)
        for start in range(soak.plan.rounds):
            for arm in soak.plan.arms:
                run.turn(arm, start)
        for arm in soak.plan.arms:
            for one in soak.plan.supplementary:
                if one.name not in arm.artifacts:
                    continue
                if run.whole(arm):
                    _supplementary(soak, arm, one)
                else:
                    soak.state.note(PASS_ENDED, arm=arm.name, name=one.name, outcome=NOT_WHOLE)
    except KeyboardInterrupt:
        soak.state.note("interrupted")
        raise Interrupted("interrupted; what is done is kept, --resume goes on") from None
    except LeanError as error:
        soak.state.note("stopped", reason=str(error))
        raise


def arm_rows(state: SoakState) -> tuple[ArmRows, ...]:
    """What the folder holds of every arm. Errors: `IntegrityError` for rows that changed."""
    return tuple(rows_of(state, arm) for arm in state.plan.arms)


class _Run:
    """One run over what is missing: which phases those are, which arms were given up, how long it takes."""

    def __init__(self, soak: Soak) -> None:
        """Make every phase that is not done ready to go on."""
        if soak.force:
            soak.state.supersede()
        end_left_behind(soak.state.folder / ARMS)
        self._soak = soak
        self._given_up: set[str] = set()
        self._seconds_per_token: dict[PhaseName, float] = {}
        self._seconds_per_start: list[float] = []
        self._todo: dict[tuple[str, PhaseName], PhaseState] = {}
        for arm in soak.plan.arms:
            for phase in soak.plan.phases:
                asked = {"asked": soak.workload.configs[phase], "starts": soak.plan.rounds}
                state = soak.state.phase(arm.name, phase, _config(soak, arm) | asked)
                if not state.done:
                    self._todo[arm.name, phase] = state
        for state in self._todo.values():
            state.begin()
        for name in {arm.name for arm in soak.plan.arms} - {name for name, _ in self._todo}:
            soak.say(f"arm {name}: its phases are done")

    def turn(self, arm: Arm, start: int) -> None:
        """An arm's share of a start, on one engine; nothing where that is done, or the arm was given up."""
        soak = self._soak
        missing = self._missing(arm, start)
        if not missing or arm.name in self._given_up:
            return
        soak.say(f"arm {arm.name}: starting its engine")
        with ExitStack() as stack:
            began = time.monotonic()
            try:
                engine = _start(soak, arm, stack, soak.plan.limits)
            except LeanError as error:
                self._give_up(arm, error)
                return
            self._seconds_per_start.append(time.monotonic() - began)
            try:
                for phase, number in missing:
                    self._replay(arm, engine, phase, number)
            except NotReadyError as error:
                self._give_up(arm, error)

    def _give_up(self, arm: Arm, error: LeanError) -> None:
        self._given_up.add(arm.name)
        self._soak.say(f"arm {arm.name} is given up: {error}")
        self._soak.state.note(GIVEN_UP, arm=arm.name, kind=type(error).__name__, reason=str(error))

    def whole(self, arm: Arm) -> bool:
        """Whether an arm has every replay of every phase."""
        return not any(self._missing(arm, start) for start in range(self._soak.plan.rounds))

    def _missing(self, arm: Arm, start: int) -> list[tuple[PhaseName, int]]:
        """What an arm lacks of a start, in the order of the phases."""
        return [
            (phase, number)
            for phase in self._soak.plan.phases
            if (state := self._todo.get((arm.name, phase))) is not None
            for number in self._soak.plan.numbers(phase, start)
            if number not in state.whole
        ]

    def _replay(self, arm: Arm, engine: Engine, phase: PhaseName, number: int) -> None:
        soak, state = self._soak, self._todo[arm.name, phase]
        of = soak.plan.replays(phase)
        soak.say(f"arm {arm.name}: {phase}, replay {number} of {of}{self._eta()}")
        began, before = time.monotonic(), read_host_state()
        with state.replay(number) as writer:
            run_replay(engine, soak.workload.replay(phase, number), soak.plan.limits, writer.append)
            throttled = throttle_reasons(before, read_host_state())
            if throttled:
                raise NotReadyError(f"arm {arm.name}: {phase}, replay {number}: {'; '.join(throttled)}")
        self._seconds_per_token[phase] = (time.monotonic() - began) / soak.workload.tokens(phase)
        soak.say(f"arm {arm.name}: {phase}, {len(state.whole)} of {of} replays done")
        if len(state.whole) == of:
            state.finish()
            soak.state.note("phase done", arm=arm.name, phase=phase)

    def _eta(self) -> str:
        """How long the rest takes, by what a token took in its phase, or in the dearest one so far."""
        if not self._seconds_per_token:
            return ""
        dearest, left = max(self._seconds_per_token.values()), 0.0
        for arm in self._soak.plan.arms:
            for start in range(self._soak.plan.rounds):
                missing = self._missing(arm, start) if arm.name not in self._given_up else []
                left += max(self._seconds_per_start) if missing else 0.0
                left += sum(
                    self._soak.workload.tokens(phase) * self._seconds_per_token.get(phase, dearest)
                    for phase, _ in missing
                )
        return f", about {left / 60:.0f} min left" if left > 90 else f", {left:.0f} s left"


def _config(soak: Soak, arm: Arm) -> dict[str, Any]:
    """What makes rows of an arm comparable: the settings asked for and the weights they are of."""
    settings = expected(arm, soak.inputs, soak.plan.slots)
    return {"settings": settings, "control": arm.control, "lock": soak.lock, "release": soak.release}


def _start(
    soak: Soak, arm: Arm, stack: ExitStack, limits: Limits, one: SupplementaryPass | None = None
) -> Engine:
    """The arm's engine, with the instruments of a pass, checked and warm. Errors: why it does not come up."""
    folder = _engine_folder(soak, arm, one)
    instruments, stop_s = None, limits.stop_s
    if one is not None:
        artifact = _artifact(folder, one)
        for left in folder.glob(f"{artifact.name}*"):
            left.unlink()
        instruments, stop_s = (
            Instruments(regions=artifact if one.regions else None, wrap=one.wrap),
            one.stop_s,
        )
    engine = stack.enter_context(
        soak.start_engine(
            arm,
            soak.inputs,
            replace(limits, stop_s=stop_s),
            slots=soak.plan.slots,
            length=soak.workload.longest,
            folder=folder,
            instruments=instruments,
        )
    )
    _check_same_engine(soak, arm, engine)
    if soak.workload.longest > engine.length:
        raise ContractError(
            f"arm {arm.name}: the plan's longest request takes {soak.workload.longest} positions, and a "
            f"stream of the engine has {engine.length}; shorten it, or serve a contract with longer buckets"
        )
    run_replay(engine, _warm_up(soak.workload), limits, lambda row: None)
    return engine


def _engine_folder(soak: Soak, arm: Arm, one: SupplementaryPass | None) -> Path:
    return soak.state.folder / ARMS / arm.name / ("engine" if one is None else f"engine-{one.name}")


def _artifact(folder: Path, one: SupplementaryPass) -> Path:
    """What a pass must leave; a profiler may add an ending of its own to the name."""
    return folder / ("regions.jsonl" if one.regions else ARTIFACT)


def _check_same_engine(soak: Soak, arm: Arm, engine: Engine) -> None:
    """Keep what the arm is, once; errors: `ContractError` when it was another one before."""
    facts = {
        "arm": to_data(arm),
        "effective": dict(engine.effective),
        "lock": engine.lock,
        "model": engine.model,
        "ready": dict(engine.ready),
    }
    plain = arm.control != "weights" and arm.encoding in (None, "bf16") and arm.engine == OURS
    if plain != (engine.lock == soak.lock) and arm.engine == OURS:
        raise ContractError(
            f"arm {arm.name}: the engine serves {engine.lock[:8]}, and the soak's pack is {soak.lock[:8]}"
        )
    known = soak.state.arm_facts(arm.name)
    if known is None:
        soak.state.keep_arm(arm.name, facts)
        return
    compared = {name: value for name, value in engine.effective.items() if name != "regions"}
    before = {name: value for name, value in known["effective"].items() if name != "regions"}
    if (known["lock"], before) != (engine.lock, compared):
        raise ContractError(
            f"arm {arm.name}: it ran with weights {known['lock'][:8]} and {before}, and now has "
            f"{engine.lock[:8]} and {compared}; rows of the two do not belong "
            "together: --resume --force does everything anew"
        )
    soak.state.note("engine started again", arm=arm.name, lock=engine.lock, effective=dict(engine.effective))


def _warm_up(workload: Workload) -> tuple[tuple[Request, ...], ...]:
    """The first requests of each phase, as many at once as they are, short and not recorded."""
    firsts = (replays[0][0] for replays in workload.groups.values())
    return tuple(
        tuple(replace(asked, new_tokens=min(_WARM, asked.new_tokens), correct=None) for asked in group)
        for group in firsts
    )


def _supplementary(soak: Soak, arm: Arm, one: SupplementaryPass) -> None:
    """One replay of conversations with instruments; what became of it is an event, never an error."""
    config = _config(soak, arm) | {"pass": to_data(one), "asked": soak.workload.configs["conversations"]}
    state = soak.state.phase(arm.name, f"pass-{one.name}", config)
    if state.done:
        return
    state.begin(keep=False)
    limits = replace(soak.plan.limits, read_s=soak.plan.limits.supplementary_read_s)
    soak.say(f"arm {arm.name}: supplementary pass {one.name}")
    try:
        with ExitStack() as stack:
            engine = _start(soak, arm, stack, limits, one)
            with state.replay(1) as writer:
                run_replay(engine, soak.workload.replay("conversations", 1), limits, writer.append)
    except LeanError as error:
        outcome = str(error)
    else:
        outcome = _outcome(state, _engine_folder(soak, arm, one), one)
        if outcome == PASS_DONE:
            state.finish()
    soak.state.note(PASS_ENDED, arm=arm.name, name=one.name, outcome=outcome)


def _outcome(state: PhaseState, folder: Path, one: SupplementaryPass) -> str:
    """Whether a pass counts: only with all answers whole, and with what it was made for."""
    if not all(row.whole for row in state.read()[0]):
        return "its answers are not whole"
    artifact = _artifact(folder, one)
    left = any(file.is_file() and file.stat().st_size for file in folder.glob(f"{artifact.name}*"))
    return PASS_DONE if left else f"the engine left no {artifact.name}"


def rows_of(state: SoakState, arm: Arm) -> ArmRows:
    """What the folder holds of one arm. Errors: `IntegrityError` for rows that changed."""
    events = [event for event in state.current_events() if event.get("arm") == arm.name]
    plan = state.plan
    found = {phase: state.rows(arm.name, phase) for phase in plan.phases}
    lacking = [phase for phase in plan.phases if len(found[phase]) < plan.replays(phase)]
    reasons = [str(event["reason"]) for event in events if event["event"] == GIVEN_UP]
    ended = {str(e["name"]): str(e["outcome"]) for e in events if e["event"] == PASS_ENDED}
    facts = state.arm_facts(arm.name)
    quality: tuple[tuple[Row, ...], ...] = found.get("quality", ())
    return ArmRows(
        name=arm.name,
        quality=quality[0] if quality else None,
        conversations=found["conversations"],
        long_decode=found.get("long_decode", ()),
        concurrent=found.get("concurrent", ()),
        not_run=(reasons[-1] if reasons else f"{lacking[0]} is not done") if lacking else None,
        passes=tuple((name, ended.get(name, "not run")) for name in arm.artifacts),
        effective=tuple((facts or {}).get("effective", {}).items()),
    )
