"""The soak plans of this checkout, as the page offers them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lean.contracts import load_plan
from lean.contracts.catalog import names
from lean.contracts.soak import Arm, SoakPlan
from lean.errors import LeanError
from remote.paths import REPOSITORY

_OPTIONS = ("engine", "encoding", "runner", "slots", "bucket", "threads", "split_k")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmChoice:
    """An arm of a plan: the options that it sets, in words, and how it is damaged, if it is on purpose."""

    name: str
    options: str
    control: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChoice:
    """A plan. `phases` with how often each is replayed. `problem`: why its file cannot be read."""

    name: str
    about: str = ""
    baseline: str = ""
    arms: tuple[ArmChoice, ...] = ()
    phases: tuple[tuple[str, int], ...] = ()
    passes: tuple[str, ...] = ()
    problem: str = ""


def read_plans(root: Path = REPOSITORY) -> tuple[PlanChoice, ...]:
    """Every plan by name; a file that cannot be read is one with a `problem`."""
    found = []
    for name in names(root / "profiles" / "soak"):
        try:
            found.append(plan_choice(load_plan(name, root)))
        except (LeanError, OSError, ValueError) as error:
            found.append(PlanChoice(name=name, problem=str(error)))
    return tuple(found)


def plan_choice(plan: SoakPlan) -> PlanChoice:
    """What the page needs of a plan."""
    return PlanChoice(
        name=plan.id,
        about=plan.about.strip(),
        baseline=plan.baseline,
        arms=tuple(ArmChoice(name=arm.name, options=_options(arm), control=arm.control) for arm in plan.arms),
        phases=tuple((phase, plan.replays(phase)) for phase in plan.phases),
        passes=tuple(one.name for one in plan.supplementary),
    )


def _options(arm: Arm) -> str:
    default = Arm(name=arm.name)
    given = [(name, getattr(arm, name)) for name in _OPTIONS]
    return ", ".join(f"{name} {value}" for name, value in given if value != getattr(default, name))
