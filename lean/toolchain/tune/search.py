"""The rounds of a search: every candidate once, the best few on all of their cases, then those in turns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lean.errors import PreflightError
from lean.toolchain.chip.pace import Pace
from lean.toolchain.speed.contract_shapes import ContractShapes
from lean.toolchain.tune.compile import Entries, read_cubin
from lean.toolchain.tune.job import Ask, Job, Run, operation_of, spoilt
from lean.toolchain.tune.journal import Journal
from lean.toolchain.tune.plan import Candidate, Plan
from lean.toolchain.workers import Lost, run_jobs

SETTLED = ("passed", "wrong")  # anything else may be a moment's trouble, and is tried again
UNSETTLED = ("lost", "failed")
FEW = 3  # finalists beside the current choice, by each number that tied kernels could share
ALL_CASES = 10  # times the limit of a candidate's first case
TURNS = 5  # that finalists are timed again; what decides is the median of them

Say = Callable[[str], None]
Results = dict[str, dict[str, Any]]  # by a candidate's digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What the rounds have in common. `seconds`: the limit of a candidate's first case and its time."""

    plan: Plan
    shapes: ContractShapes
    folder: Path
    built: Entries
    journal: Journal
    run: Run
    seconds: float
    seed: int
    pace: Pace
    say: Say

    def try_all(self) -> Results:
        """Try what the journal does not hold; everything that was tried."""
        everyone = self.plan.all()
        ready = [c for c in everyone if self.built.get(c.digest, {}).get("status") == "compiled"]
        tried = sum(self._settled(self._key(c)) for c in ready)
        self.say(f"{len(everyone)} candidates, {len(ready)} compiled, {tried} tried before")
        return self._asked("try", ready)

    def prove(self, candidates: Sequence[Candidate]) -> Results:
        """Run every case of these; what the journal does not hold."""
        return self._asked("prove", candidates, " all cases")

    def time_in_turns(self, families: Sequence[Sequence[Candidate]]) -> Results:
        """`turns_us` of each: a family `TURNS` times one behind the other, every other turn backwards.

        Of one that is lost or fails now, in spite of its earlier times, just that. No journal holds them:
        times of another hour, when the chip was perhaps warmer, are not compared with today's.
        """
        turns = [
            candidate
            for family in families
            for turn in range(TURNS)
            for candidate in (family if turn % 2 == 0 else reversed(family))
        ]
        results: dict[str, list[dict[str, Any]]] = {candidate.digest: [] for candidate in turns}
        self._run("time", turns, lambda c, found: results[c.digest].append(found), " again")
        return {digest: _of_turns(found) for digest, found in results.items()}

    def _asked(self, ask: Ask, candidates: Sequence[Candidate], suffix: str = "") -> Results:
        """What the journal holds of each, or else a worker says."""
        keys = {c.digest: self._key(c) + suffix for c in candidates}

        def keep(candidate: Candidate, found: dict[str, Any]) -> None:
            self.journal.add(keys[candidate.digest], found | {"candidate": candidate.label})

        self._run(ask, [c for c in candidates if not self._settled(keys[c.digest])], keep, suffix)
        return {digest: self.journal.entries[key] for digest, key in keys.items()}

    def _run(
        self,
        ask: Ask,
        todo: Sequence[Candidate],
        keep: Callable[[Candidate, dict[str, Any]], None],
        apart: str,
    ) -> None:
        """Ask one worker of each, in this order."""

        def finished(index: int, told_so: Any) -> None:
            found, candidate = told(told_so), todo[index]
            keep(candidate, found)
            words = f"{found['median_us']:.2f} us" if "median_us" in found else found.get("reason", "right")
            self.say(f"{index + 1}/{len(todo)} {candidate.label}{apart}: {words}")

        run_jobs(
            self.run,
            [replace(self.job(candidate), ask=ask) for candidate in todo],
            workers=1,
            seconds=self.seconds * (ALL_CASES if ask == "prove" else 1),
            finished=finished,
            retire=spoilt,
        )

    def job(self, candidate: Candidate) -> Job:
        """What a worker gets."""
        return Job(
            operation=operation_of(candidate, self.shapes),
            cubin=read_cubin(self.folder, candidate, self.built[candidate.digest]),
            sizes=self.shapes.sizes,
            rope_theta=self.shapes.rope_theta,
            seed=self.seed,
            pace=self.pace,
        )

    def _key(self, candidate: Candidate) -> str:
        return f"{candidate.digest} {self.built[candidate.digest]['sha256']}"

    def _settled(self, key: str) -> bool:
        return self.journal.entries.get(key, {}).get("status") in SETTLED


def told(found: Any) -> dict[str, Any]:
    """A result as the journal has it. Errors: `PreflightError` when the GPU is gone."""
    if isinstance(found, Lost) and found.reason.startswith(PreflightError.__name__):
        raise PreflightError(f"the GPU is no longer there: {found.reason}; what was tried is kept")
    if isinstance(found, Lost):
        return {"status": "lost", "reason": found.reason, "seconds": found.seconds}
    return dict(found)


def finalists(
    family: Sequence[Candidate], times: Mapping[str, float], out: Collection[str]
) -> tuple[Candidate, ...]:
    """The current choice and the fastest `FEW` of each number to share, as far as they passed."""
    passed = sorted(
        (c for c in family if c.digest in times and c.digest not in out), key=lambda c: times[c.digest]
    )
    chosen: dict[Any, list[Candidate]] = {}
    for candidate in passed:
        chosen.setdefault(candidate.tie, []).append(candidate)
    best = [candidate for few in chosen.values() for candidate in few[:FEW]]
    return (*(c for c in passed if c.current), *(c for c in best if not c.current))


def proven(search: Search, times: Mapping[str, float]) -> tuple[Results, list[tuple[Candidate, ...]]]:
    """Every case of all finalists, and of those that take the place of any that failed; who is left."""
    proofs: Results = {}
    while True:
        out = [digest for digest, found in proofs.items() if found["status"] != "passed"]
        left = [finalists(family, times, out) for family in search.plan.candidates.values()]
        todo = [c for few in left for c in few if c.digest not in proofs]
        if not todo:
            return proofs, left
        proofs |= search.prove(todo)


def _of_turns(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    bad = next((found for found in results if found["status"] != "passed"), None)
    return bad or {"turns_us": [found["median_us"] for found in results]}
