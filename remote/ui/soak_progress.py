"""How far a soak is: from the lines that it says while it runs, or from what its host keeps of it.

Both have one form: {"soak", "arms": [{"name", "state", "reason", "phases", "passes"}], "eta", "now"}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from remote.ui.loose import count, mapping, objects, texts, words
from remote.ui.plans import PlanChoice

ArmState = Literal["waiting", "starting", "running", "begun", "done", "given up"]

# What `lean.soak.run` says.
_SOAK = re.compile(r"soak (\S+): \d+ arms, ")
_ARM = re.compile(r"arm ([a-z0-9][a-z0-9_-]*)(?:: | )(.*)")
_REPLAY = re.compile(r"(\w+), replay (\d+) of (\d+)(?:, (.+) left)?")
_REPLAYED = re.compile(r"(\w+), (\d+) of (\d+) replays done")
_PASS = re.compile(r"supplementary pass (\S+)")
_GIVEN_UP = "is given up: "
_NOT_DONE = re.compile(r"\w+ is not done")
_PASS_ENDED = "ended"  # what became of it is in the record


@dataclass(slots=True, kw_only=True)
class PhaseProgress:
    """Replays of one phase that are whole, and whether one runs."""

    name: str
    done: int
    of: int
    running: bool = False


@dataclass(slots=True, kw_only=True)
class ArmProgress:
    """One arm. `passes`: each supplementary pass and what is known of it."""

    name: str
    control: str | None
    state: ArmState = "waiting"
    reason: str = ""
    phases: list[PhaseProgress]
    passes: dict[str, str]


@dataclass(slots=True, kw_only=True)
class SoakProgress:
    """The progress of one soak; `hear` moves it on. `eta` and `now` are the soak's own words."""

    arms: list[ArmProgress]
    soak: str = ""
    eta: str = ""
    now: str = ""

    @classmethod
    def of(cls, plan: PlanChoice) -> SoakProgress:
        """Nothing is known yet."""
        return cls(
            arms=[
                ArmProgress(
                    name=arm.name,
                    control=arm.control,
                    phases=[PhaseProgress(name=name, done=0, of=of) for name, of in plan.phases],
                    passes=dict.fromkeys(plan.passes, "not run"),
                )
                for arm in plan.arms
            ]
        )

    def hear(self, line: str) -> bool:
        """Take in one line; whether it told anything."""
        line = line.strip()
        begun = _SOAK.match(line)
        if begun:
            self.soak = begun[1]
            return True
        found = _ARM.fullmatch(line)
        arm = next((one for one in self.arms if found and one.name == found[1]), None)
        return arm is not None and found is not None and self._hear_arm(arm, found[2])

    def document(self) -> dict[str, Any]:
        """As the page gets it."""
        return {
            "soak": self.soak,
            "eta": self.eta,
            "now": self.now,
            "arms": [asdict(arm) | {"passes": list(arm.passes.items())} for arm in self.arms],
        }

    def _hear_arm(self, arm: ArmProgress, said: str) -> bool:
        replay, replayed, one = _REPLAY.fullmatch(said), _REPLAYED.fullmatch(said), _PASS.fullmatch(said)
        if said.startswith(_GIVEN_UP):
            _still(arm)
            arm.state, arm.reason = "given up", said.removeprefix(_GIVEN_UP)
            return True
        if one and one[1] in arm.passes:
            self._pass(arm, one[1])
        elif replay and any(phase.name == replay[1] for phase in arm.phases):
            self._replay(arm, replay[1], int(replay[3]))
            self.eta = replay[4] or ""
        elif replayed and any(phase.name == replayed[1] for phase in arm.phases):
            _replayed(arm, replayed[1], int(replayed[2]), int(replayed[3]))
        elif said == "its phases are done":
            _finish(arm)
        elif said == "starting its engine":
            self._others_rest(arm)
            arm.state, arm.reason = "starting", ""
        else:
            return False
        where = f"{replay[1]}, replay {replay[2]} of {replay[3]}" if replay else said
        self.now = f"{arm.name}: {where}"
        return True

    def _replay(self, arm: ArmProgress, name: str, of: int) -> None:
        """A replay starts; the arms take turns, so its number does not say how many are done."""
        self._others_rest(arm)
        _still(arm)
        arm.state, arm.reason = "running", ""
        phase = next(phase for phase in arm.phases if phase.name == name)
        phase.of, phase.running = of, True

    def _pass(self, arm: ArmProgress, name: str) -> None:
        """A supplementary pass starts, so every arm is through its phases, or was given up."""
        self.eta = ""
        for other in self.arms:
            _finish(other)
            other.passes = {
                each: _PASS_ENDED if state == "running" else state for each, state in other.passes.items()
            }
        arm.passes[name] = "running"

    def _others_rest(self, arm: ArmProgress) -> None:
        """Only one arm's engine runs."""
        for other in self.arms:
            _still(other)
            if other is not arm and other.state in ("starting", "running"):
                other.state = "begun"


def from_standing(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same of `remote.soak --show`'s document, with what happened last; a part that lacks is empty."""
    plan, phases = mapping(document.get("plan")), mapping(document.get("phases"))
    not_run = mapping(document.get("not_run"))
    passes = {words(one.get("name")): _pairs(one.get("passes")) for one in objects(document.get("summaries"))}
    arms = []
    for arm in objects(plan.get("arms")):
        name = words(arm.get("name"))
        reason = words(not_run.get(name))
        done = [
            PhaseProgress(
                name=words(phase), done=count(mapping(each).get("replays")), of=count(mapping(each).get("of"))
            )
            for phase, each in mapping(phases.get(name)).items()
        ]
        given_up = bool(reason) and not _NOT_DONE.fullmatch(reason)
        begun: ArmState = "begun" if any(phase.done for phase in done) else "waiting"
        state: ArmState = "given up" if given_up else "done" if not reason else begun
        one = ArmProgress(
            name=name,
            control=words(arm.get("control")) or None,
            state=state,
            reason=reason if given_up else "",
            phases=done,
            passes=dict(passes.get(name, ())),
        )
        arms.append(one)
    found = SoakProgress(arms=arms, soak=words(document.get("soak"))).document()
    return found | {
        "finished": document.get("finished") is True,
        "cut": len(texts(document.get("incomplete"))),
        "last": [_event(event) for event in objects(document.get("last"))],
    }


def _replayed(arm: ArmProgress, name: str, done: int, of: int) -> None:
    phase = next(phase for phase in arm.phases if phase.name == name)
    phase.done, phase.of, phase.running = done, of, False
    if all(each.done == each.of for each in arm.phases):
        arm.state = "done"


def _finish(arm: ArmProgress) -> None:
    """Through its phases, unless it was given up."""
    _still(arm)
    if arm.state != "given up":
        arm.state = "done"
        for phase in arm.phases:
            phase.done = phase.of


def _still(arm: ArmProgress) -> None:
    for phase in arm.phases:
        phase.running = False


def _pairs(value: object) -> Sequence[tuple[str, str]]:
    pairs = value if isinstance(value, list) else []
    whole = [pair for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2]
    return [(words(name), words(outcome)) for name, outcome in whole]


def _event(event: Mapping[str, Any]) -> str:
    told = [words(event.get(name)) for name in ("event", "arm", "phase", "name", "reason", "outcome")]
    return f"{words(event.get('at_utc'))[:19]} {', '.join(filter(None, told))}".strip()
