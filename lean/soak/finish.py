"""What a soak comes to: rows judged, the record written, and where an unfinished one stands."""

from __future__ import annotations

import hashlib
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lean.bench.record import Release
from lean.contracts import to_data
from lean.errors import GateError, InvalidRunError, LeanError
from lean.host_facts import host_facts
from lean.leanpack.read import read_manifest
from lean.soak.plots import draw_soak
from lean.soak.record import PAGE, SoakRecord, rows_file, write_soak
from lean.soak.report import CAUGHT, SoakFacts, soak_report
from lean.soak.rows import ArmRows
from lean.soak.run import Soak, arm_rows, rows_of
from lean.soak.state import SoakState, digest
from lean.soak.summary import ArmSummary, summarize
from lean.soak.verdict import Verdict, judge


def judged(soak: SoakState, arms: tuple[ArmRows, ...]) -> tuple[tuple[ArmSummary, ...], tuple[Verdict, ...]]:
    """Summaries and verdicts of what is there."""
    summaries = summarize(soak.plan, arms)
    return summaries, judge(summaries, soak.plan.baseline, soak.plan.thresholds)


def keep(soak: Soak, *, release: Release, host: str, results: Path) -> tuple[SoakRecord, Path]:
    """Judge and write the record; it, and where it is. Errors: `PreflightError` when it cannot be written."""
    state, arms = soak.state, arm_rows(state)
    summaries, verdicts = judged(state, arms)
    rows = rows_file(state)
    now = datetime.now(UTC)
    dirty = "-dirty" if release.dirty else ""
    lacking = tuple(f"{arm.name}: {arm.not_run}" for arm in arms if arm.not_run is not None)
    record = SoakRecord(
        id=f"{now:%Y%m%dT%H%M%SZ}-{state.plan.id}-{release.git_sha[:7]}{dirty}",
        host=host,
        release=release,
        plan=state.plan,
        contract=soak.ground.contract,
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
        rows_sha256=hashlib.sha256(rows).hexdigest(),
    )
    place = write_soak(record, results, rows, _pages(record, summaries, verdicts))
    state.finish(str(record.place))
    return record, place


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
        incomplete=tuple(f"a replay that was cut, kept on the host as {file}" for file in record.incomplete),
        command=("invoke", "remote.soak", "--host", record.host, "--plan", record.plan.id),
    )
    with tempfile.TemporaryDirectory() as folder:
        figures = draw_soak(record.plan, summaries, Path(folder))
        pages = {name: Path(folder, name).read_bytes() for name in figures}
    return {PAGE: soak_report(record.plan, facts, summaries, verdicts, figures).encode(), **pages}


def failure_of(record: SoakRecord) -> LeanError | None:
    """Why a soak that ended says nothing, or not all: a damaged arm went unseen, or an arm is not whole."""
    controls = {arm.name for arm in record.plan.arms if arm.control is not None}
    unseen = [v.arm for v in record.verdicts if v.arm in controls and v.verdict not in CAUGHT]
    if unseen:
        return GateError(
            f"the arm {unseen[0]!r} is damaged on purpose and was called {_called(record, unseen[0])!r}: "
            "this soak would see such damage in no other arm; give it more replays, or a quieter host"
        )
    if record.why_not:
        return InvalidRunError(
            f"{len(record.why_not)} of {len(record.plan.arms)} arms are not whole, {record.why_not[0]}; "
            f"go on with: invoke remote.soak --plan {record.plan.id} --resume"
        )
    return None


def _reasons(soak: Soak, release: Release) -> tuple[str, ...]:
    """Why no claim can be made of it: a soak chooses between settings, and is no fixed-contract run."""
    manifest, _ = read_manifest(soak.ground.pack)
    found = {
        "a soak compares settings of one engine and is no run of a fixed contract": True,
        f"the weights are {manifest.weights}": manifest.weights != "checkpoint",
        "the code differed from its commit": release.dirty,
    }
    return tuple(reason for reason, holds in found.items() if holds)


def _called(record: SoakRecord, arm: str) -> str:
    return next(str(v.verdict) for v in record.verdicts if v.arm == arm)


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
