"""What a sweep measures, and how far it got: the plan, its cells, and the journal that holds both."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from lean.contracts import BenchProfile
from lean.contracts.host import check_host_name
from lean.errors import UsageError
from remote.appliance.bench import BenchRequest, Load

State = Literal["planned", "running", "done", "invalid", "failed", "interrupted"]
MEASURED: tuple[State, ...] = (
    "done",
    "invalid",
)  # an invalid run was measured: what is wrong is in its record
MAX_CELLS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """Every profile with every runner, split-K and load, `runs` times each. None is a verb's own default.

    `fresh`: a service of its own for each cell, so that a chip is also measured in process; else one service
    stays up for all cells that it fits.
    """

    profiles: tuple[str, ...]
    runs: int
    runners: tuple[str | None, ...] = (None,)
    split_ks: tuple[int | None, ...] = (None,)
    loads: tuple[Load, ...] = (Load(),)
    pack: str | None = None
    requests: int | None = None
    warmup: int | None = None
    allow_uncleared: bool = False
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise ValueError(f"runs: expected at least 1, got {self.runs}")
        for name in ("profiles", "runners", "split_ks", "loads"):
            found = getattr(self, name)
            if not found or len(set(found)) != len(found):
                raise ValueError(f"{name}: expected at least one, each once")

    def profile(self, name: str, load: Load) -> BenchProfile:
        """A profile as it is measured. Errors: `ContractError` for what none may have."""
        request = BenchRequest(profile=name, requests=self.requests, warmup=self.warmup, load=load)
        return request.changed_profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the runs of one line of the summary have in common. `load`: in words; `slots`: of the service."""

    profile: str
    runner: str | None
    split_k: int | None
    load: str
    slots: int

    @property
    def service(self) -> tuple[str | None, int | None, int]:
        """What a service must be to measure it."""
        return self.runner, self.split_k, self.slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Medians of one run, as its own record has them. `best_tokens_per_s`: of its best round.

    `ttft_s`: of an open loop since a request was due.
    """

    tokens_per_s: float | None
    best_tokens_per_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    goodput_per_s: float | None
    refused: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a cell has no numbers, or numbers that do not count."""

    kind: str
    message: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One measurement of the plan: the `run`-th of its setting.

    `place`: the run directory it made, below the results root; `earlier`: those of attempts before.
    """

    setting: Setting
    how: Load
    run: int
    state: State = "planned"
    attempts: int = 0
    place: str | None = None
    earlier: tuple[str, ...] = ()
    label: str | None = None
    figures: Figures | None = None
    problem: Problem | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        s = self.setting
        split_k = f", split-K {s.split_k}" if s.split_k is not None else ""
        return f"{s.profile}, {s.runner or 'default runner'}{split_k}, {s.load}, run {self.run}"

    def again(self) -> Cell:
        """The cell as one more attempt begins; what an earlier one left stays named."""
        return replace(
            self,
            state="running",
            attempts=self.attempts + 1,
            place=None,
            earlier=self.earlier + ((self.place,) if self.place else ()),
            label=None,
            figures=None,
            problem=None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The whole of sweep.json. `pack`: the name of the one that every cell measures, once it is known."""

    SCHEMA: ClassVar[str] = "sweep/v1"

    name: str
    host: str
    started_utc: str
    plan: SweepPlan
    cells: tuple[Cell, ...]
    pack: str | None = None

    def __post_init__(self) -> None:
        check_host_name("name", self.name)

    @property
    def missing(self) -> tuple[int, ...]:
        """The cells that have no measurement yet, in order."""
        return tuple(i for i, cell in enumerate(self.cells) if cell.state not in MEASURED)

    def with_cell(self, index: int, cell: Cell) -> Sweep:
        """The sweep with one cell replaced."""
        cells = list(self.cells)
        cells[index] = cell
        return replace(self, cells=tuple(cells))


def plan_cells(plan: SweepPlan) -> tuple[Cell, ...]:
    """The cells of a plan, those of one service together, and of them every first run before a second.

    So a machine that drifts drifts over all settings alike. Errors: `ContractError` for a profile that does
    not exist or may not have a load, `UsageError` for too many cells.
    """
    settings = [
        (
            Setting(
                profile=name,
                runner=runner,
                split_k=split_k,
                load=(ran := plan.profile(name, load)).load,
                slots=ran.batch,
            ),
            load,
        )
        for runner, split_k, name, load in itertools.product(
            plan.runners, plan.split_ks, plan.profiles, plan.loads
        )
    ]
    if len(settings) * plan.runs > MAX_CELLS:
        raise UsageError(f"{len(settings) * plan.runs} cells; a sweep has at most {MAX_CELLS}")
    services = dict.fromkeys(setting.service for setting, _ in settings)
    return tuple(
        Cell(setting=setting, how=load, run=run)
        for service in services
        for run in range(1, plan.runs + 1)
        for setting, load in settings
        if setting.service == service
    )


def by_service(sweep: Sweep) -> Iterator[tuple[Setting, list[int]]]:
    """Missing cells that follow one another on the same service, with the setting of the first."""
    for _, group in itertools.groupby(sweep.missing, key=lambda i: sweep.cells[i].setting.service):
        indices = list(group)
        yield sweep.cells[indices[0]].setting, indices


def figures_of(document: dict[str, Any]) -> Figures:
    """The medians in what `lean.bench run` printed."""
    metrics, load = document.get("metrics") or {}, document.get("load") or {}

    def of(name: str, which: str = "median", among: dict[str, Any] = metrics) -> float | None:
        found = among.get(name)
        return float(found[which]) if found else None

    return Figures(
        tokens_per_s=of("tokens_per_s"),
        best_tokens_per_s=of("tokens_per_s", "maximum"),
        ttft_s=of("due_ttft_s", among=load) if load else of("ttft_s"),
        tpot_s=of("tpot_s"),
        goodput_per_s=load.get("goodput_per_s"),
        refused=load.get("refused"),
    )
