"""Our appliance against another system on the same host: what the gate said of both, and the ratio.

A figure is one run's median of generated tokens/s. Medians are held against medians and bests against bests;
the claim is the strict one, the median of our runs over the best run of the baseline. Every number follows
from the run records named, whose hashes are part of the document. Words that records keep say `peer`.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lean.bench.baseline_gate import Check, Ran, check_fairness
from lean.bench.bootstrap import CONFIDENCE, RESAMPLES, SEED, Interval
from lean.bench.metrics import round_tokens_per_s
from lean.bench.record import RunRecord
from lean.bench.run_row import OURS
from lean.contracts.label import Label
from lean.contracts.systems import BEST_OF
from lean.errors import UsageError
from lean.percentile import percentile

BAR = 1.30  # of the claim: our generated tokens/s over the baseline's


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """One run that a comparison rests on. `sha256` is of its run.json, the raw payload."""

    run: str
    sha256: str
    tokens_per_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    label: Label


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """All runs of one system, in the order they ran.

    Tokens/s of runs: `plain` of the first, `median` over all, `best` of all; None where a run has none.
    """

    system: str
    as_run: str
    runs: tuple[RunFile, ...]
    plain: float | None
    median: float | None
    best: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """Ours over the baseline's, in generated tokens/s. `claim`: our median over its best, with its interval.

    `first_token` and `per_token` are ours over the baseline's too, of medians: less is better there.
    """

    plain: float
    median: float
    best: float
    claim: float
    claim_interval: Interval | None
    first_token: float | None
    per_token: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the protocol, as it was done. `detail` is what it left, in a line."""

    at_utc: str
    what: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The protocol as the laptop wrote it down."""

    SCHEMA: ClassVar[str] = "versus-steps/v1"

    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineComparison:
    """The whole of versus.json."""

    SCHEMA: ClassVar[str] = "versus/v1"

    id: str
    host: str
    contract: str
    profile: str
    label: Label
    label_reasons: tuple[str, ...]
    status: Literal["ok", "invalid"]
    ours: Side
    peer: Side
    checks: tuple[Check, ...]
    ratios: Ratios | None
    bar: float
    confidence: float
    steps: tuple[Step, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it does not count; empty when it does."""
        return tuple(f"{check.rule}: {check.detail}" for check in self.checks if not check.passed)


def compare_with_baseline(
    name: str, ours: Sequence[Ran], baseline: Sequence[Ran], steps: tuple[Step, ...]
) -> BaselineComparison:
    """Judge and compare. Errors: `UsageError` without runs of both, or with ours and theirs mixed up."""
    if not ours or not baseline:
        raise UsageError("a comparison needs at least one run of ours and one of the baseline's")
    if any(ran.record.peer for ran in ours) or not all(ran.record.peer for ran in baseline):
        raise UsageError("--ours: runs of our own service; --baseline: runs of another system")
    first = ours[0].record
    checks = check_fairness(ours, baseline)
    fair = all(check.passed for check in checks)
    reasons = dict.fromkeys(reason for ran in ours for reason in ran.record.label_reasons)
    reasons |= dict.fromkeys(("the fairness gate was not passed",) if not fair else ())
    reasons |= dict.fromkeys(reason for reason, holds in _against(ours, baseline).items() if holds)
    here, there = _side(OURS, first, ours), _side(_system(baseline), baseline[0].record, baseline)
    return BaselineComparison(
        id=name,
        host=first.host,
        contract=first.contract.id,
        profile=first.profile.id,
        label="exploratory" if reasons else "fixed-contract",
        label_reasons=tuple(reasons),
        status="ok" if fair else "invalid",
        ours=here,
        peer=there,
        checks=checks,
        ratios=_ratios(here, there, ours, baseline) if fair else None,
        bar=BAR,
        confidence=CONFIDENCE,
        steps=steps,
    )


def _against(ours: Sequence[Ran], baseline: Sequence[Ran]) -> dict[str, bool]:
    """What is no unfairness, but no claim either."""
    dtypes = {ran.record.backend.compute_dtype for ran in (*ours, *baseline) if ran.record.backend}
    return {
        f"a best is of {BEST_OF} runs or more": len(ours) < BEST_OF or len(baseline) < BEST_OF,
        f"they compute in {' and '.join(sorted(dtypes))}": len(dtypes) != 1,
        "the peer's threads were set": any(r.record.peer and r.record.peer.threads for r in baseline),
    }


def _system(runs: Sequence[Ran]) -> str:
    found = runs[0].record.peer
    assert found is not None
    return f"{found.system} {found.version}"


def _side(name: str, record: RunRecord, runs: Sequence[Ran]) -> Side:
    files = tuple(_file(ran) for ran in runs)
    rates = [file.tokens_per_s for file in files]
    known = [rate for rate in rates if rate is not None]
    whole = len(known) == len(rates)
    runner = f"{record.backend.name} runner" if record.backend else "unknown"
    return Side(
        system=name,
        as_run=record.peer.as_run if record.peer else runner,
        runs=files,
        plain=rates[0],
        median=statistics.median(known) if whole else None,
        best=max(known) if whole else None,
    )


def _file(ran: Ran) -> RunFile:
    record, metrics = ran.record, ran.metrics
    return RunFile(
        run=record.place.as_posix(),
        sha256=ran.sha256,
        tokens_per_s=metrics.tokens_per_s.median if metrics.tokens_per_s else None,
        ttft_s=metrics.ttft_s.median if metrics.ttft_s else None,
        tpot_s=metrics.tpot_s.median if metrics.tpot_s else None,
        label=record.label,
    )


def _ratios(here: Side, there: Side, ours: Sequence[Ran], baseline: Sequence[Ran]) -> Ratios | None:
    if None in (here.plain, here.median, here.best, there.plain, there.median, there.best):
        return None
    assert here.plain and here.median and here.best and there.plain and there.median and there.best
    return Ratios(
        plain=here.plain / there.plain,
        median=here.median / there.median,
        best=here.best / there.best,
        claim=here.median / there.best,
        claim_interval=_interval(_rounds(ours), _rounds(baseline)),
        first_token=_quotient([f.ttft_s for f in here.runs], [f.ttft_s for f in there.runs]),
        per_token=_quotient([f.tpot_s for f in here.runs], [f.tpot_s for f in there.runs]),
    )


def _quotient(here: Sequence[float | None], there: Sequence[float | None]) -> float | None:
    ours, theirs = [v for v in here if v is not None], [v for v in there if v is not None]
    return statistics.median(ours) / statistics.median(theirs) if ours and theirs else None


def _interval(ours: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> Interval | None:
    """Where the claim lies: runs are drawn, then rounds within them, and the very claim is computed.

    None with one run of a side, which says nothing of how runs differ. The same rounds give the same one.
    """
    if len(ours) < 2 or len(baseline) < 2:
        return None
    drawing = random.Random(SEED)

    def medians(runs: Sequence[Sequence[float]]) -> list[float]:
        drawn = drawing.choices(runs, k=len(runs))
        return [statistics.median(drawing.choices(rounds, k=len(rounds))) for rounds in drawn]

    found = [statistics.median(medians(ours)) / max(medians(baseline)) for _ in range(RESAMPLES)]
    tail = 100 * (1 - CONFIDENCE) / 2
    return Interval(low=percentile(found, tail), high=percentile(found, 100 - tail))


def _rounds(runs: Sequence[Ran]) -> list[tuple[float, ...]]:
    """Tokens/s of every measured round, by run."""
    return [round_tokens_per_s(ran.record.measured) for ran in runs]
