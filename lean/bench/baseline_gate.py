"""The fairness gate over our runs and a baseline's: each rule once, over all runs of both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lean.bench.fairness import judge_fairness
from lean.bench.metrics import RunMetrics, run_metrics
from lean.bench.record import RUN_FILE, RunRecord
from lean.bench.results import read_unaltered
from lean.bench.shown_run import invalid_reasons
from lean.contracts import to_data


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One rule of the fairness gate. `detail` names the two values where it was broken."""

    rule: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A run directory that was read, with the hash of its run.json, and `metrics` anew from its samples."""

    record: RunRecord
    sha256: str
    metrics: RunMetrics


def read_ran(folder: Path) -> Ran:
    """Errors: `ContractError` naming the file and the field, `IntegrityError` for one that was altered."""
    sha256 = hashlib.sha256((folder / RUN_FILE).read_bytes()).hexdigest()
    return ran_of(read_unaltered(folder), sha256)


def ran_of(record: RunRecord, sha256: str) -> Ran:
    """A record with the hash of its run.json."""
    metrics = run_metrics(record.contract, record.profile, record.samples)
    return Ran(record=record, sha256=sha256, metrics=metrics)


def check_fairness(ours: Sequence[Ran], baseline: Sequence[Ran]) -> tuple[Check, ...]:
    """Every rule, passed or not."""
    return tuple(rule(ours, baseline) for rule in _CHECKS)


Rule = Callable[[Sequence[Ran], Sequence[Ran]], Check]


def _valid(ours: Sequence[Ran], baseline: Sequence[Ran]) -> Check:
    wrong = [
        f"{ran.record.place.as_posix()}: {'; '.join(invalid_reasons(ran.record)) or ran.record.status}"
        for ran in (*ours, *baseline)
        if ran.record.status != "ok"
    ]
    return Check(
        rule="every run is fair in itself, and none was throttled",
        passed=not wrong,
        detail=" | ".join(wrong) or f"{len(ours)} and {len(baseline)} runs",
    )


def _as_many(ours: Sequence[Ran], baseline: Sequence[Ran]) -> Check:
    different = [len({ran.sha256 for ran in runs}) for runs in (ours, baseline)]
    return Check(
        rule="as many different runs of ours as of the peer's",
        passed=different == [len(ours), len(baseline)] and len(ours) == len(baseline),
        detail=f"{len(ours)} and {len(baseline)}, of them different {different[0]} and {different[1]}",
    )


def _from_samples(ours: Sequence[Ran], baseline: Sequence[Ran]) -> Check:
    """Nobody edited a figure or a verdict and left the samples."""
    wrong = []
    for ran in (*ours, *baseline):
        record = ran.record
        fair = judge_fairness(record.contract, record.profile, record.samples)
        figures = [(m.tokens_per_s, m.ttft_s, m.tpot_s, m.e2e_s) for m in (ran.metrics, record.metrics)]
        if figures[0] != figures[1] or fair.fair != record.fairness.fair:
            wrong.append(record.place.as_posix())
    return Check(
        rule="every figure and verdict follows from its run's samples",
        passed=not wrong,
        detail=", ".join(wrong) or "all recomputed",
    )


def _slots(record: RunRecord) -> int | None:
    if record.peer is not None:
        return record.peer.slots
    runner = record.service.get("runner")
    return runner.get("slots") if isinstance(runner, dict) else None


def _device(record: RunRecord) -> str | None:
    if record.backend is None:
        return None
    return "cpu" if record.backend.device == "cpu" else "gpu"


def _same(rule: str, of: Callable[[RunRecord], object]) -> Rule:
    """A check that all runs of both sides agree in something that is there."""

    def check(ours: Sequence[Ran], baseline: Sequence[Ran]) -> Check:
        found = {str(of(ran.record)) for ran in (*ours, *baseline)}
        shown = sorted(value if len(value) <= 80 else f"{value[:77]}…" for value in found)
        return Check(rule=rule, passed=len(found) == 1 and "None" not in found, detail=", ".join(shown))

    return check


def _prompts(record: RunRecord) -> str:
    listed = sorted((p.phase, p.stream, p.round, p.ids_sha256) for p in record.prompts)
    return hashlib.sha256(repr(listed).encode()).hexdigest()[:16]


def _weights(record: RunRecord) -> str | None:
    if record.peer is not None:
        return record.peer.weights_sha256
    return record.pack.source_sha256 if record.pack else None


_CHECKS: tuple[Rule, ...] = (
    _valid,
    _from_samples,
    _as_many,
    _same("one contract", lambda record: record.contract.id),
    _same("one profile, with the same counts", lambda record: to_data(record.profile)),
    _same("the same prompts, token by token", _prompts),
    _same("prompts in the same form", lambda record: record.prompt_form),
    _same("the same weight files", _weights),
    _same("the same kind of device", _device),
    _same("as many streams at once", _slots),
    _same("the same machine", lambda record: record.host_facts.get("host")),
    _same("one client, of one release", lambda record: record.release.id),
)
