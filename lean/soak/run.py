"""The order of a soak: every arm through its primary phases, then the supplementary passes of all arms.

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

from lean.contracts import to_data
from lean.contracts.soak import Arm, Limits, PhaseName, SoakPlan, SupplementaryPass
from lean.errors import ContractError, Interrupted, LeanError, NotReadyError
from lean.soak.engine import ARTIFACT, Engine, Ground, Instruments, expected, serving
from lean.soak.phases import Asked, Script, run_replay
from lean.soak.rows import ArmRows, Row
from lean.soak.state import PhaseState, SoakState

GIVEN_UP, PASS_ENDED = "arm given up", "pass ended"
PASS_DONE = "done"


class Launch(Protocol):
    """How an arm's engine is started; `lean.soak.engine.serving` is the real one."""

    def __call__(
        self,
        arm: Arm,
        ground: Ground,
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
    script: Script
    ground: Ground
    lock: str
    say: Callable[[str], None]
    force: bool = False
    launch: Launch = serving

    @property
    def plan(self) -> SoakPlan:
        """The plan that the folder holds."""
        return self.state.plan


def run_soak(soak: Soak) -> None:
    """Do what is missing. Errors: `Interrupted`, and `PreflightError` for a full disk; both can be resumed.

    `ContractError` and `IntegrityError` for a phase that was begun otherwise or changed since.
    """
    progress = _Progress(soak)
    try:
        for arm in soak.plan.arms:
            _primary(soak, arm, progress)
        for arm in soak.plan.arms:
            for one in soak.plan.supplementary:
                _supplementary(soak, arm, one)
    except (KeyboardInterrupt, Interrupted):
        soak.state.note("interrupted")
        raise Interrupted("interrupted; what is done is kept, --resume goes on") from None
    except LeanError as error:
        soak.state.note("stopped", reason=str(error))
        raise


def arm_rows(soak: Soak) -> tuple[ArmRows, ...]:
    """What the folder holds of every arm. Errors: `IntegrityError` for rows that changed."""
    return tuple(rows_of(soak.state, arm) for arm in soak.plan.arms)


def _phase(soak: Soak, arm: Arm, phase: PhaseName) -> PhaseState:
    return soak.state.phase(arm.name, phase, _config(soak, arm) | {"asked": soak.script.configs[phase]})


def _config(soak: Soak, arm: Arm) -> dict[str, Any]:
    """What makes rows of an arm comparable: the settings asked for and the weights they are of."""
    settings = expected(arm, soak.ground, soak.plan.slots)
    return {"settings": settings, "control": arm.control, "lock": soak.lock}


def _primary(soak: Soak, arm: Arm, progress: _Progress) -> None:
    """The phases that an arm lacks, on one engine."""
    states = {phase: _phase(soak, arm, phase) for phase in soak.plan.phases}
    todo = [phase for phase, state in states.items() if soak.force or not state.done]
    if not todo:
        soak.say(f"arm {arm.name}: its phases are done")
        return
    begun = {phase: states[phase].begin(force=soak.force) for phase in todo}
    soak.say(f"arm {arm.name}: starting its engine")
    with ExitStack() as stack:
        try:
            engine = _start(soak, arm, stack, soak.plan.limits)
        except LeanError as error:
            _give_up(soak, arm, error)
            return
        for phase in todo:
            for number in range(1, soak.plan.replays(phase) + 1):
                if number in begun[phase]:
                    continue
                progress.begin(arm, phase, number)
                if not _replay(soak, arm, engine, states[phase], soak.script.replay(phase, number), number):
                    return
                progress.ended(phase)
            states[phase].finish()
            soak.state.note("phase done", arm=arm.name, phase=phase)


def _start(
    soak: Soak, arm: Arm, stack: ExitStack, limits: Limits, one: SupplementaryPass | None = None
) -> Engine:
    """The arm's engine, with the instruments of a pass, checked and warm. Errors: why it does not come up."""
    folder = _engine_folder(soak, arm, one)
    instruments, stop_s = None, limits.stop_s
    if one is not None:
        artifact = _artifact(folder, one)
        artifact.unlink(missing_ok=True)
        instruments, stop_s = (
            Instruments(regions=artifact if one.regions else None, wrap=one.wrap),
            one.stop_s,
        )
    engine = stack.enter_context(
        soak.launch(
            arm,
            soak.ground,
            replace(limits, stop_s=stop_s),
            slots=soak.plan.slots,
            length=soak.script.longest,
            folder=folder,
            instruments=instruments,
        )
    )
    _check_same_engine(soak, arm, engine)
    if soak.script.longest > engine.length:
        raise ContractError(
            f"arm {arm.name}: the plan's longest request takes {soak.script.longest} positions, and a "
            f"stream of the engine has {engine.length}; shorten it, or serve a contract with longer buckets"
        )
    run_replay(engine, _warm_up(soak.script), limits, lambda row: None)
    return engine


def _engine_folder(soak: Soak, arm: Arm, one: SupplementaryPass | None) -> Path:
    return soak.state.folder / "arms" / arm.name / ("engine" if one is None else f"engine-{one.name}")


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
    known = soak.state.arm_facts(arm.name)
    if known is None:
        soak.state.keep_arm(arm.name, facts)
        return
    compared = {name: value for name, value in engine.effective.items() if name != "regions"}
    before = {name: value for name, value in known["effective"].items() if name != "regions"}
    if (known["lock"], before) != (engine.lock, compared) and not soak.force:
        raise ContractError(
            f"arm {arm.name}: it ran with weights {known['lock'][:8]} and {before}, and now has "
            f"{engine.lock[:8]} and {compared}; rows of the two do not belong together: --force does it anew"
        )
    soak.state.note("engine started again", arm=arm.name, lock=engine.lock, effective=dict(engine.effective))


def _warm_up(script: Script) -> tuple[tuple[Asked, ...], ...]:
    """One short request of the first kind, not recorded."""
    first = next(iter(script.groups.values()))[0][0][0]
    return ((replace(first, new_tokens=min(16, first.new_tokens), correct=None),),)


def _replay(
    soak: Soak,
    arm: Arm,
    engine: Engine,
    phase: PhaseState,
    groups: tuple[tuple[Asked, ...], ...],
    number: int,
) -> bool:
    """One replay; False when the engine failed in it, and the arm is given up."""
    try:
        with phase.replay(number) as writer:
            run_replay(engine, groups, soak.plan.limits, writer.append)
    except NotReadyError as error:
        _give_up(soak, arm, error)
        return False
    return True


def _give_up(soak: Soak, arm: Arm, error: LeanError) -> None:
    soak.say(f"arm {arm.name} is given up: {error}")
    soak.state.note(GIVEN_UP, arm=arm.name, kind=type(error).__name__, reason=str(error))


def _supplementary(soak: Soak, arm: Arm, one: SupplementaryPass) -> None:
    """One replay of conversations with instruments; what became of it is an event, never an error."""
    config = _config(soak, arm) | {"pass": to_data(one), "asked": soak.script.configs["conversations"]}
    state = soak.state.phase(arm.name, f"pass-{one.name}", config)
    if not soak.force and state.done:
        return
    state.begin(force=soak.force)
    limits = replace(soak.plan.limits, read_s=soak.plan.limits.supplementary_read_s)
    soak.say(f"arm {arm.name}: supplementary pass {one.name}")
    try:
        with ExitStack() as stack:
            engine = _start(soak, arm, stack, limits, one)
            with state.replay(1) as writer:
                run_replay(engine, soak.script.replay("conversations", 1), limits, writer.append)
    except Interrupted:
        raise
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
    left = any(file.stat().st_size for file in folder.glob(f"{artifact.name}*"))
    return PASS_DONE if left else f"the engine left no {artifact.name}"


def rows_of(state: SoakState, arm: Arm) -> ArmRows:
    """What the folder holds of one arm. Errors: `IntegrityError` for rows that changed."""
    events = [event for event in state.events() if event.get("arm") == arm.name]
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
        passes=tuple((one.name, ended.get(one.name, "not run")) for one in plan.supplementary),
        effective=tuple((facts or {}).get("effective", {}).items()),
    )


class _Progress:
    """Says where the soak is, and after the first replay how long it will take."""

    def __init__(self, soak: Soak) -> None:
        self._soak = soak
        self._seconds_per_token: dict[PhaseName, float] = {}
        self._started = 0.0
        self._left: dict[tuple[str, PhaseName], int] = {
            (arm.name, phase): soak.plan.replays(phase)
            for arm in soak.plan.arms
            for phase in soak.plan.phases
        }

    def begin(self, arm: Arm, phase: PhaseName, number: int) -> None:
        """A replay starts; those before it are done."""
        names = [one.name for one in self._soak.plan.arms]
        for earlier in names[: names.index(arm.name)]:
            for name in self._soak.plan.phases:
                self._left[earlier, name] = 0
        replays = self._soak.plan.replays(phase)
        self._left[arm.name, phase] = replays - number
        left = self._left_s()
        eta = (
            ""
            if left is None
            else f", about {left / 60:.0f} min left"
            if left > 90
            else f", {left:.0f} s left"
        )
        self._soak.say(f"arm {arm.name}: {phase}, replay {number} of {replays}{eta}")
        self._started = time.monotonic()

    def ended(self, phase: PhaseName) -> None:
        """The replay ended whole."""
        seconds = time.monotonic() - self._started
        self._seconds_per_token[phase] = seconds / self._soak.script.tokens(phase)

    def _left_s(self) -> float | None:
        """Seconds, by what a token took in the same phase, or in the dearest one that was measured."""
        if not self._seconds_per_token:
            return None
        dearest = max(self._seconds_per_token.values())
        return sum(
            count * self._soak.script.tokens(phase) * self._seconds_per_token.get(phase, dearest)
            for (_, phase), count in self._left.items()
        )
