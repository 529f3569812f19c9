"""One run of the results folder in one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lean.bench.metrics import Summary
from lean.bench.record import RunRecord, Status
from lean.bench.sums import Sums
from lean.contracts.label import Label
from lean.markdown import plain

OURS = "leanstack"
NO_SUMS = Sums(recorded=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run in one line. Times in seconds; `tokens_per_s` over all streams of the batch.

    `load`: in words, where it is not rounds of as many streams as slots; not to be compared with those.
    `sums`: "ok", or "no sums recorded" for a record of before there were any.
    """

    host: str
    profile: str
    batch: int
    id: str
    status: Status
    label: Label
    contract: str
    backend: str
    requests: int
    tokens_per_s_median: float | None
    tokens_per_s_best: float | None
    ttft_s_median: float | None
    tpot_s_median: float | None
    bandwidth_share_median: float | None
    bandwidth_basis: str | None
    in_process_tokens_per_s: float | None
    note: str
    sums: str
    path: str
    load: str | None = None
    system: str = OURS


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenRun:
    """A directory that looks like a run and cannot be read, or whose files were altered since."""

    path: str
    problem: str
    kind: Literal["unreadable", "altered"] = "unreadable"


def run_row(record: RunRecord, path: Path, sums: Sums = NO_SUMS) -> RunRow:
    """The row of one record."""
    metrics = record.metrics
    return RunRow(
        host=record.host,
        profile=plain(record.profile.id),
        batch=record.profile.batch,
        id=record.id,
        status=record.status,
        label=record.label,
        contract=plain(record.contract.id),
        backend=plain(record.backend.name if record.backend else "unknown"),
        requests=len(record.measured),
        tokens_per_s_median=_median(metrics.tokens_per_s),
        tokens_per_s_best=metrics.tokens_per_s.maximum if metrics.tokens_per_s else None,
        ttft_s_median=_median(metrics.ttft_s),
        tpot_s_median=_median(metrics.tpot_s),
        bandwidth_share_median=_median(metrics.bandwidth_share),
        bandwidth_basis=metrics.bandwidth_basis,
        in_process_tokens_per_s=record.in_process.tokens_per_second if record.in_process else None,
        note=plain(record.failure.message if record.failure else ""),
        sums=sums.verdict,
        path=plain(str(path)),
        load=None if record.profile.in_rounds_of_batch else record.profile.load,
        system=OURS if record.peer is None else plain(record.peer.system),
    )


def row_data(run: RunRow | BrokenRun) -> dict[str, Any]:
    """The fields by name. They are plain values, so `dataclasses.asdict` only takes ten times as long."""
    return {name: getattr(run, name) for name in run.__slots__}


def _median(summary: Summary | None) -> float | None:
    return summary.median if summary else None
