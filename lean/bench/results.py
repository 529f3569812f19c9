"""The folder of results, read only: rows for `results.list`, one run in full for `results.show`.

Nothing in the folder is trusted: names, types and sizes are checked, and one bad record never hides the
others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.bench.metrics import Summary
from lean.bench.record import RUN_FILE, RunRecord, Status, read_run
from lean.contracts.label import Label
from lean.errors import ContractError, UsageError

VERSION = "v1"
NOT_RUNS = (
    *("verify", "gate", "portability", "kernels", "tune"),
    *("costs", "transfers", "in_process", "oracle", "accuracy"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run in one line. Times in seconds; `tokens_per_s` over all streams of the batch."""

    host: str
    profile: str
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
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenRun:
    """A directory that looks like a run and cannot be read."""

    path: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunList:
    """Every run below a results root, oldest first within host and profile."""

    rows: tuple[RunRow, ...]
    broken: tuple[BrokenRun, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One metric as it is shown. `values` are in `unit`."""

    name: str
    unit: str
    values: Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRun:
    """One run for people: (name, value) facts, metrics in readable units, and why it may not count."""

    facts: tuple[tuple[str, str], ...]
    metrics: tuple[MetricRow, ...]
    reasons: tuple[str, ...]
    files: tuple[str, ...]


def list_runs(results_root: Path) -> RunList:
    """All runs below `<results_root>/v1`.

    An unreadable record becomes a `BrokenRun`; a missing folder is empty.
    """
    rows: list[RunRow] = []
    broken: list[BrokenRun] = []
    for path in _run_directories(results_root / VERSION):
        try:
            rows.append(run_row(_read_in_place(path), path))
        except ContractError as error:
            broken.append(BrokenRun(path=plain(str(path)), problem=plain(str(error))))
    return RunList(rows=tuple(rows), broken=tuple(broken))


def find_run(results_root: Path, name: str) -> Path:
    """The one run a user means: a path, `latest`, or the start of a run's name.

    Errors: `UsageError` when none or several fit.
    """
    known = _run_directories(results_root / VERSION)
    if name == "latest" and (found := sorted(known, key=lambda path: path.name)):
        return found[-1]
    fitting = [path for path in known if name and path.name.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting and (Path(name) / RUN_FILE).is_file():
        return Path(name)
    problem = f"{len(fitting)} runs start with" if fitting else "no run is named"
    raise UsageError(f"{problem} {name!r} below {results_root}; `results.list` shows what is there")


def run_row(record: RunRecord, path: Path) -> RunRow:
    """The row of one record."""
    metrics = record.metrics
    return RunRow(
        host=record.host,
        profile=plain(record.profile.id),
        id=record.id,
        status=record.status,
        label=record.label,
        contract=plain(record.contract.id),
        backend=plain(record.backend.name if record.backend else "unknown"),
        requests=sum(sample.phase == "measured" for sample in record.samples),
        tokens_per_s_median=_median(metrics.tokens_per_s),
        tokens_per_s_best=metrics.tokens_per_s.maximum if metrics.tokens_per_s else None,
        ttft_s_median=_median(metrics.ttft_s),
        tpot_s_median=_median(metrics.tpot_s),
        bandwidth_share_median=_median(metrics.bandwidth_share),
        bandwidth_basis=metrics.bandwidth_basis,
        in_process_tokens_per_s=record.in_process.tokens_per_second if record.in_process else None,
        note=plain(record.failure.message if record.failure else ""),
        path=plain(str(path)),
    )


def metric_rows(record: RunRecord) -> tuple[MetricRow, ...]:
    """The metrics a run has, in the units people read: ms, tokens/s, GB/s, percent."""
    m = record.metrics
    measured = m.bandwidth_basis == "measured"
    bandwidth = "the measured read bandwidth" if measured else "the data sheet's bandwidth"
    table = (
        ("generated tokens/s, all streams", "tokens/s", m.tokens_per_s, 1.0),
        ("generated tokens/s, one request", "tokens/s", m.request_tokens_per_s, 1.0),
        ("decode tokens/s, one request", "tokens/s", m.decode_tokens_per_s, 1.0),
        ("TTFT", "ms", m.ttft_s, 1e3),
        ("TPOT", "ms", m.tpot_s, 1e3),
        ("ITL", "ms", m.itl_s, 1e3),
        ("E2E latency", "ms", m.e2e_s, 1e3),
        ("read bandwidth", "GB/s", m.bytes_per_s, 1e-9),
        (f"share of {bandwidth}", "%", m.bandwidth_share, 1e2),
    )
    return tuple(
        MetricRow(name=name, unit=unit, values=_scaled(values, factor))
        for name, unit, values, factor in table
        if values is not None
    )


def show_run(path: Path) -> ShownRun:
    """One run in full. Errors: `ContractError` naming the file and the field that is wrong."""
    record = read_run(path)
    return ShownRun(
        facts=tuple((name, plain(value)) for name, value in run_facts(record)),
        metrics=metric_rows(record),
        reasons=tuple(plain(reason) for reason in invalid_reasons(record)),
        files=tuple(sorted(plain(entry.name) for entry in path.iterdir())) if path.is_dir() else (),
    )


def run_facts(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """What ran, where and when, as (name, value) pairs."""
    pack, backend, release = record.pack, record.backend, record.release
    coverage = backend.operator_coverage if backend else None
    return (
        ("run", f"{record.host} / {record.profile.id} / {record.id}"),
        ("status", record.status + (f": {record.failure.message}" if record.failure else "")),
        ("label", record.label + (f" ({'; '.join(record.label_reasons)})" if record.label_reasons else "")),
        (
            "contract",
            f"{record.contract.id} ({record.contract.encoding} on {record.contract.target_facts.name})",
        ),
        ("model", f"{record.contract.model.id}, revision {record.contract.model.revision or 'not pinned'}"),
        ("pack LOCK", f"{pack.lock} ({pack.weights} weights)" if pack else "unknown"),
        ("backend", f"{backend.name} on {backend.device}, {backend.compute_dtype}" if backend else "unknown"),
        (
            "operator coverage",
            "unknown" if coverage is None else f"{coverage:.1%} of a step's bytes on our kernels",
        ),
        ("code", release.git_sha + (f", dirty (diff {release.diff_sha256})" if release.dirty else ", clean")),
        ("machine", machine_line(record.host_facts)),
        ("started", record.started_utc),
        ("finished", record.finished_utc),
        *in_process_facts(record),
    )


def in_process_facts(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """What the same traffic took without HTTP, or why nobody knows; nothing for a record of version 1."""
    found, http = record.in_process, record.metrics.tokens_per_s
    if found is None:
        return (("in process", f"not measured: {record.no_in_process}"),) if record.no_in_process else ()
    rate = f"{number(found.tokens_per_second)} tokens/s"
    ratio = f", HTTP reaches {http.median / found.tokens_per_second:.3f} of it" if http else ""
    return (("in process", rate + ratio),)


def machine_line(facts: dict[str, Any]) -> str:
    """One line about the machine from its `lean.host_facts`; what they lack is left out."""

    def fact(group: str, name: str) -> Any:
        found = facts.get(group)
        return found.get(name) if isinstance(found, dict) else None

    memory, usable = fact("memory", "total"), fact("cpu", "usable")
    gpus = facts.get("gpus")
    parts = [str(found) for found in (fact("cpu", "model"), fact("system", "arch")) if found]
    parts += [f"{usable} usable processors"] if isinstance(usable, int) else []
    parts += [f"{memory / 2**30:.1f} GiB memory"] if isinstance(memory, int) else []
    parts += [str(g.get("name")) for g in gpus if isinstance(g, dict)] if isinstance(gpus, list) else []
    parts += [str(found) for found in (fact("system", "os"), fact("system", "kernel")) if found]
    return ", ".join(parts) or "unknown"


def invalid_reasons(record: RunRecord) -> tuple[str, ...]:
    """Why the numbers do not count; empty for a run that is valid."""
    failure = (f"{record.failure.kind}: {record.failure.message}",) if record.failure else ()
    return failure + record.fairness.reasons + record.throttled


def number(value: float) -> str:
    """A number with four significant digits and no exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 9)}f}"


def plain(text: str) -> str:
    """Text a terminal cannot be steered with: '?' for control, surrogate and other unprintable characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _read_in_place(path: Path) -> RunRecord:
    record = read_run(path)
    if path.parts[-4:] != record.place.parts:
        raise ContractError(f"{path / RUN_FILE}: belongs at {record.place}; it was moved or renamed")
    return record


def _run_directories(version: Path) -> tuple[Path, ...]:
    """Directories three levels down: host, profile, run; sorted.

    Hidden ones are unfinished, links are not followed, and proofs and costs lie in the same folder and are no
    runs.
    """

    def below(folders: Iterator[Path]) -> Iterator[Path]:
        for folder in folders:
            with os.scandir(folder) as entries:
                names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
            yield from (folder / name for name in names if name not in NOT_RUNS and not name.startswith("."))

    if not version.is_dir():
        return ()
    return tuple(below(below(below(iter((version,))))))


def _median(summary: Summary | None) -> float | None:
    return summary.median if summary else None


def _scaled(summary: Summary, factor: float) -> Summary:
    return Summary(
        count=summary.count,
        median=summary.median * factor,
        mean=summary.mean * factor,
        std=None if summary.std is None else summary.std * factor,
        p95=summary.p95 * factor,
        p99=summary.p99 * factor,
        minimum=summary.minimum * factor,
        maximum=summary.maximum * factor,
    )
