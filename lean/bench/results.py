"""The folder of results, read only: rows for `results.list`, one run in full for `results.show`.

Nothing in the folder is trusted: names, types and sizes are checked, and one bad record never hides the
others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lean.bench.index import Entries, files_state, index_file, read_index, write_index
from lean.bench.metrics import Summary
from lean.bench.record import RUN_FILE, RunRecord, Status, read_run
from lean.bench.sums import Sums, check_sums
from lean.contracts.label import Label
from lean.errors import ContractError, IntegrityError, UsageError

VERSION = "v1"
OURS = "leanstack"
NO_SUMS = Sums(recorded=False)
NOT_RUNS = (
    *("verify", "gate", "portability", "kernels", "tune"),
    *("costs", "transfers", "in_process", "oracle", "accuracy", "regions"),
    *("baseline", "versus", "sweeps", "soak"),
)


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
    altered: tuple[str, ...] = ()


def list_runs(results_root: Path, cache: Path | None = None) -> RunList:
    """All runs below `<results_root>/v1`.

    An unreadable or altered record becomes a `BrokenRun`; a missing folder is empty. `cache`: a folder for
    what was read of runs whose files have not changed since, see `lean.bench.index`.
    """
    file = index_file(cache, results_root) if cache else None
    known = read_index(file) if file else {}
    found: list[RunRow | BrokenRun] = []
    kept: Entries = {}
    whole = False
    try:
        for name in _run_directories(results_root / VERSION):
            state = files_state(name)
            mark, data = known.get(name, ("", {}))
            run = _remembered(data) if mark == state.mark else None
            if run is None:
                run = _look(Path(name))
                data = row_data(run)
            found.append(run)
            if state.settled:
                kept[name] = (state.mark, data)
        whole = True
    finally:  # what an interrupted listing has read is not lost
        if file and kept != known:
            write_index(file, kept if whole else known | kept)
    return RunList(
        rows=tuple(run for run in found if isinstance(run, RunRow)),
        broken=tuple(run for run in found if isinstance(run, BrokenRun)),
    )


def find_run(results_root: Path, name: str) -> Path:
    """The one run a user means: a path, `latest`, or the start of a run's name.

    Errors: `UsageError` when none or several fit.
    """
    known = _run_directories(results_root / VERSION)
    if name == "latest" and known:
        return Path(max(known, key=os.path.basename))
    fitting = [path for path in known if name and os.path.basename(path).startswith(name)]
    if len(fitting) == 1:
        return Path(fitting[0])
    if not fitting and (Path(name) / RUN_FILE).is_file():
        return Path(name)
    problem = f"{len(fitting)} runs start with" if fitting else "no run is named"
    raise UsageError(f"{problem} {name!r} below {results_root}; `results.list` shows what is there")


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
        requests=sum(sample.phase == "measured" for sample in record.samples),
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


def read_unaltered(path: Path) -> RunRecord:
    """One run whose files are those that were written, as far as sums were recorded.

    Errors: `IntegrityError` naming each file that is not; else those of `read_run`.
    """
    folder = path if path.is_dir() else path.parent
    sums = check_sums(folder)
    if sums.altered:
        raise IntegrityError(plain(altered_line(folder, sums)))
    return read_run(path)


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


def number(value: float) -> str:
    """A number with four significant digits and no exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 9)}f}"


def plain(text: str) -> str:
    """Text a terminal cannot be steered with: '?' for control, surrogate and other unprintable characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def row_data(run: RunRow | BrokenRun) -> dict[str, Any]:
    """The fields by name. They are plain values, so `dataclasses.asdict` only takes ten times as long."""
    return {name: getattr(run, name) for name in run.__slots__}


def _look(path: Path) -> RunRow | BrokenRun:
    sums = check_sums(path)
    problem = ""
    try:
        record = _read_in_place(path)
        if not sums.altered:
            return run_row(record, path, sums)
    except ContractError as error:
        problem = str(error)
    if sums.altered:
        problem = "; ".join(filter(None, (altered_line(path, sums), problem)))
    kind: Literal["unreadable", "altered"] = "altered" if sums.altered else "unreadable"
    return BrokenRun(path=plain(str(path)), problem=plain(problem), kind=kind)


def _remembered(data: dict[str, Any]) -> RunRow | BrokenRun | None:
    try:
        return BrokenRun(**data) if "problem" in data else RunRow(**data)
    except TypeError:
        return None


def altered_line(path: Path, sums: Sums) -> str:
    """What is wrong with a directory whose files are not those that were written, and the fix."""
    return (
        f"{path}: altered after it was written: {'; '.join(sums.altered)}; bring the files back "
        f"(git checkout -- {path}) or measure again"
    )


def _read_in_place(path: Path) -> RunRecord:
    record = read_run(path)
    if path.parts[-4:] != record.place.parts:
        raise ContractError(f"{path / RUN_FILE}: belongs at {record.place}; it was moved or renamed")
    return record


def _run_directories(version: Path) -> tuple[str, ...]:
    """Directories three levels down: host, profile, run; sorted.

    Hidden ones are unfinished, links are not followed, and proofs and costs lie in the same folder and are no
    runs. Names, not paths: of ten thousand those take longer to make than the folder to read.
    """

    def below(folders: Iterable[str]) -> Iterator[str]:
        for folder in folders:
            with os.scandir(folder) as entries:
                names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
            yield from (f"{folder}/{name}" for name in names if name not in NOT_RUNS and name[0] != ".")

    if not version.is_dir():
        return ()
    return tuple(below(below(below((str(version),)))))


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
