"""One run in full, as `results.show` and its report say it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.bench.metrics import Summary
from lean.bench.record import RunRecord, read_run
from lean.bench.sums import altered_line, check_sums
from lean.errors import ContractError, IntegrityError
from lean.markdown import number, plain


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
    altered: tuple[str, ...] = ()


def show_run(path: Path) -> ShownRun:
    """One run in full; `altered` names files that are not those that were written.

    Errors: `ContractError` naming the file and the field that is wrong, `IntegrityError` when that file was
    altered too.
    """
    folder = path if path.is_dir() else path.parent
    sums = check_sums(folder)
    try:
        record = read_run(path)
    except ContractError as error:
        if sums.altered:
            raise IntegrityError(plain(f"{altered_line(folder, sums)}; {error}")) from None
        raise
    facts = (*run_facts(record), ("files", sums.verdict))
    return ShownRun(
        facts=tuple((name, plain(value)) for name, value in facts),
        metrics=metric_rows(record),
        reasons=tuple(plain(reason) for reason in invalid_reasons(record)),
        files=tuple(sorted(plain(entry.name) for entry in path.iterdir())) if path.is_dir() else (),
        altered=tuple(plain(file) for file in sums.altered),
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
        *_load_table(record),
    )
    return tuple(
        MetricRow(name=name, unit=unit, values=_scaled(values, factor))
        for name, unit, values, factor in table
        if values is not None
    )


def _load_table(record: RunRecord) -> tuple[tuple[str, str, Summary | None, float], ...]:
    """What an open loop's requests took since they were due; nothing for rounds."""
    load = record.load
    if load is None or not record.profile.arrivals.is_open:
        return ()
    return (
        ("TTFT since it was due", "ms", load.due_ttft_s, 1e3),
        ("E2E latency since it was due", "ms", load.due_e2e_s, 1e3),
        ("sent after it was due", "ms", load.send_delay_s, 1e3),
    )


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
        *load_facts(record),
    )


def in_process_facts(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """What the same traffic took without HTTP, or why nobody knows; nothing for a record of version 1."""
    found, http = record.in_process, record.metrics.tokens_per_s
    if found is None:
        return (("in process", f"not measured: {record.no_in_process}"),) if record.no_in_process else ()
    rate = f"{number(found.tokens_per_second)} tokens/s"
    ratio = f", HTTP reaches {http.median / found.tokens_per_second:.3f} of it" if http else ""
    return (("in process", rate + ratio),)


def load_facts(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """What became of a load that is not a contract's rounds; nothing for those."""
    load = record.load
    if load is None:
        return ()
    counts = f"{load.offered} offered, {load.answered} answered, {load.refused} refused, {load.failed} failed"
    rates = (
        ("answered", load.answered_per_s, "requests/s"),
        ("goodput", load.goodput_per_s, "requests/s"),
        ("throughput", load.tokens_per_s, "tokens/s"),
        ("goodput", load.goodput_tokens_per_s, "tokens/s"),
    )
    said = [f"{name} {number(value)} {unit}" for name, value, unit in rates if value is not None]
    window = f" over {number(load.window_s)} s" if load.window_s is not None else ""
    return (
        ("load", f"{record.profile.load}: {counts}"),
        ("rates", (", ".join(said) or "none") + window + f"; {load.in_time} in time"),
    )


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
