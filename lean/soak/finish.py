"""What a soak comes to: rows judged, the record written, and where an unfinished one stands."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lean.bench.record import Release
from lean.contracts import to_data
from lean.errors import GateError, InvalidRunError, LeanError
from lean.host_facts import host_facts
from lean.leanpack.read import read_manifest
from lean.soak.plots import draw_soak
from lean.soak.record import PAGE, SoakRecord, write_soak
from lean.soak.report import SoakFacts, soak_report
from lean.soak.rows import ArmRows
from lean.soak.run import Soak, arm_rows, rows_of
from lean.soak.state import SoakState, digest
from lean.soak.summary import ArmSummary, summarize
from lean.soak.verdict import Verdict, caught, judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A record and where it is; `failure`: why it says not all, or cannot be believed."""

    record: SoakRecord
    place: Path
    failure: LeanError | None


def judged(soak: SoakState, arms: tuple[ArmRows, ...]) -> tuple[tuple[ArmSummary, ...], tuple[Verdict, ...]]:
    """Summaries and verdicts of what is there."""
    summaries = summarize(soak.plan, arms)
    return summaries, judge(summaries, soak.plan.baseline, soak.plan.thresholds)


def keep(soak: Soak, *, release: Release, host: str, results: Path) -> Kept:
    """Judge and write the record. Errors: `PreflightError` when it cannot be written."""
    state = soak.state
    arms = arm_rows(state)
    summaries, verdicts = judged(state, arms)
    now = datetime.now(UTC)
    dirty = "-dirty" if release.dirty else ""
    lacking = tuple(f"{arm.name}: {arm.not_run}" for arm in arms if arm.not_run is not None)
    record = SoakRecord(
        id=f"{now:%Y%m%dT%H%M%SZ}-{state.plan.id}-{release.git_sha[:7]}{dirty}",
        host=host,
        release=release,
        plan=state.plan,
        contract=soak.inputs.contract,
        pack_lock=soak.lock,
        label="exploratory",
        label_reasons=_reasons(soak, release),
        started_utc=str(state.events()[0]["at_utc"]),
        finished_utc=now.isoformat(timespec="milliseconds"),
        complete=not lacking,
        why_not=lacking,
        host_facts=host_facts(str(results)),
        arms={arm.name: state.arm_facts(arm.name) for arm in arms},
        summaries=summaries,
        verdicts=verdicts,
        incomplete=state.incomplete(),
    )
    place = write_soak(record, results, state, _pages(record, summaries, verdicts))
    if record.complete:
        state.finish(str(record.place))
    return Kept(record=record, place=place, failure=failure_of(record, summaries, verdicts))


def _pages(
    record: SoakRecord, summaries: tuple[ArmSummary, ...], verdicts: tuple[Verdict, ...]
) -> dict[str, bytes]:
    """report.md and its figures."""
    facts = SoakFacts(
        host=record.host,
        contract=record.contract,
        release=record.release,
        plan_sha256=digest(to_data(record.plan)),
        started_utc=record.started_utc,
        ended_utc=record.finished_utc,
        label=record.label,
        label_reasons=record.label_reasons,
        incomplete=() if record.complete else tuple(f"cut, kept on the host: {f}" for f in record.incomplete),
        command=("invoke", "remote.soak", "--host", record.host, "--plan", record.plan.id),
    )
    with tempfile.TemporaryDirectory() as folder:
        figures = draw_soak(record.plan, summaries, Path(folder))
        pages = {name: Path(folder, name).read_bytes() for name in figures}
    return {PAGE: soak_report(record.plan, facts, summaries, verdicts, figures).encode(), **pages}


def failure_of(
    record: SoakRecord, summaries: Sequence[ArmSummary], verdicts: Sequence[Verdict]
) -> LeanError | None:
    """Why a soak that ended says not all, or cannot be believed; None when it can."""
    plan, by_arm = record.plan, {one.arm: one for one in verdicts}
    if record.why_not:
        return InvalidRunError(
            f"{len(record.why_not)} of {len(plan.arms)} arms are not whole, {record.why_not[0]}; "
            f"go on with: invoke remote.soak --plan {plan.id} --resume"
        )
    base = by_arm[plan.baseline]
    if plan.quality is not None and base.verdict != "baseline":
        return InvalidRunError(f"nothing could be judged: {plan.baseline}: {base.why}")
    for arm in summaries:
        if arm.control is not None and caught(arm, by_arm[arm.name]) is False:
            return GateError(
                f"the arm {arm.name!r} is damaged on purpose ({arm.control}) and no rule for that caught it, "
                f"it was called {by_arm[arm.name].verdict!r}: this soak would see such damage in no other arm"
            )
    for name in plan.twins:
        if by_arm[name].verdict not in ("keep opt-in", "not judged"):
            return InvalidRunError(
                f"the arm {name!r} has the baseline's own settings and was called {by_arm[name].verdict!r}: "
                "this host is too unsteady for the rules, and no verdict here means anything; make it quieter"
            )
    return None


def _reasons(soak: Soak, release: Release) -> tuple[str, ...]:
    """Why no claim can be made of it: a soak chooses between settings, and is no fixed-contract run."""
    manifest, _ = read_manifest(soak.inputs.pack)
    found = {
        "a soak compares settings of one engine and is no run of a fixed contract": True,
        f"the weights are {manifest.weights}": manifest.weights != "checkpoint",
        "the code differed from its commit": release.dirty,
    }
    return tuple(reason for reason, holds in found.items() if holds)


def standing(state: SoakState) -> dict[str, Any]:
    """Where a soak is: each arm's replays by phase, what happened last, and what would be said of it now."""
    arms = tuple(rows_of(state, arm) for arm in state.plan.arms)
    summaries, verdicts = judged(state, arms)
    phases = {
        arm.name: {
            phase: {"replays": len(state.rows(arm.name, phase)), "of": state.plan.replays(phase)}
            for phase in state.plan.phases
        }
        for arm in state.plan.arms
    }
    return {
        "soak": state.folder.name,
        "plan": to_data(state.plan),
        "finished": state.finished,
        "phases": phases,
        "not_run": {arm.name: arm.not_run for arm in arms},
        "incomplete": list(state.incomplete()),
        "summaries": to_data(summaries),
        "verdicts": to_data(verdicts),
        "last": list(state.events()[-3:]),
    }
