"""Kept runs for other programs: every metric, and on request every request, as CSV, Markdown or JSON.

One row for each metric of each run, in the units people read; with samples also one for each request, raw
times in nanoseconds as in run.json. Standard library only.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lean.bench.metrics import request_metrics
from lean.bench.record import RunRecord
from lean.bench.results import read_unaltered
from lean.bench.run_row import BrokenRun, RunRow
from lean.bench.shown_run import metric_rows
from lean.contracts import to_data
from lean.errors import LeanError, UsageError
from lean.files.staging import replace_file
from lean.markdown import cell, plain, table

Format = Literal["csv", "md", "json"]

METRIC_COLUMNS = (
    *("host", "profile", "run", "status", "label", "contract", "backend", "batch", "metric", "unit", "n"),
    *("median", "mean", "std", "p95", "p99", "min", "max"),
)
SAMPLE_COLUMNS = (
    *("host", "profile", "run", "phase", "stream", "round", "prompt_tokens", "completion_tokens"),
    *("sent_ns", "first_byte_ns", "end_ns", "ttft_s", "tpot_s", "e2e_s", "finish_reason", "error"),
    *("event_ns", "event_tokens"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What is exported. `metrics` and `samples` hold one mapping a row, keyed by their columns.

    `samples` is None where nobody asked for them. `broken` names what could not be exported.
    """

    metrics: tuple[Mapping[str, Any], ...]
    samples: tuple[Mapping[str, Any], ...] | None
    broken: tuple[BrokenRun, ...]

    def document(self) -> dict[str, Any]:
        """As plain data."""
        found: dict[str, Any] = {
            "metrics": [dict(row) for row in self.metrics],
            "broken": [asdict(run) for run in self.broken],
        }
        return found if self.samples is None else found | {"samples": [dict(row) for row in self.samples]}


def format_named(name: str) -> Format:
    """Errors: `UsageError` naming those there are."""
    known = {str(one): one for one in get_args(Format)}
    if name not in known:
        raise UsageError(f"--format {name[:40]!r}: expected one of {', '.join(known)}")
    found: Format = known[name]
    return found


def export_runs(rows: Iterable[RunRow], broken: Sequence[BrokenRun], *, samples: bool) -> Exported:
    """Read these runs in full.

    One that cannot be read any more, or was altered since it was listed, joins the broken ones.
    """
    metrics: list[Mapping[str, Any]] = []
    requests: list[Mapping[str, Any]] = []
    lost = list(broken)
    for row in rows:
        try:
            record = read_unaltered(Path(row.path))
        except LeanError as error:
            lost.append(BrokenRun(path=row.path, problem=plain(str(error))))
            continue
        metrics += _metrics(record)
        requests += _samples(record) if samples else ()
    return Exported(metrics=tuple(metrics), samples=tuple(requests) if samples else None, broken=tuple(lost))


def export_texts(found: Exported, form: Format) -> dict[str, str]:
    """File name -> text: one document, or of CSV with samples two."""
    if form == "json":
        return {"runs.json": json.dumps(found.document(), indent=1) + "\n"}
    if form == "md":
        return {"runs.md": markdown_text(found)}
    texts = {"metrics.csv": csv_text(METRIC_COLUMNS, found.metrics)}
    if found.samples is not None:
        texts["samples.csv"] = csv_text(SAMPLE_COLUMNS, found.samples)
    return texts


def write_texts(texts: Mapping[str, str], out: Path) -> tuple[Path, ...]:
    """Write one text as the file `out`, several into the folder `out`. Errors: `UsageError` if it exists."""
    if out.exists():
        raise UsageError(f"{out}: exists; name a new one")
    files = {out / name if len(texts) > 1 else out: text for name, text in texts.items()}
    try:
        for file, text in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, text)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}") from None
    return tuple(files)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """RFC 4180 with a header line. What is not known is empty, and lists are joined by blanks."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_field(row[column]) for column in columns] for row in rows)
    return text.getvalue()


def markdown_text(found: Exported) -> str:
    """Tables for people: the metrics, the requests without their arrival times, and what is missing."""
    parts = [_table(METRIC_COLUMNS, found.metrics)]
    if found.samples is not None:
        parts.append(_table(SAMPLE_COLUMNS[:-2], found.samples))
    parts += [f"Not exported, {run.kind}: {cell(run.problem)}\n" for run in found.broken]
    return "\n".join(parts)


def _metrics(record: RunRecord) -> Iterable[dict[str, Any]]:
    for row in metric_rows(record):
        v = row.values
        yield _names(record) | {
            "status": record.status,
            "label": record.label,
            "contract": plain(record.contract.id),
            "backend": plain(record.backend.name if record.backend else "unknown"),
            "batch": record.profile.batch,
            "metric": row.name,
            "unit": row.unit,
            **{"n": v.count, "median": v.median, "mean": v.mean, "std": v.std, "p95": v.p95, "p99": v.p99},
            **{"min": v.minimum, "max": v.maximum},
        }


def _samples(record: RunRecord) -> Iterable[dict[str, Any]]:
    for sample in record.samples:
        m = request_metrics(sample)
        raw = to_data(sample)
        yield _names(record) | {
            **{name: raw[name] for name in SAMPLE_COLUMNS if name in raw},
            "completion_tokens": sample.usage_completion_tokens,
            "ttft_s": m.ttft_s if m else None,
            "tpot_s": m.tpot_s if m else None,
            "e2e_s": m.e2e_s if m else None,
            "finish_reason": plain(sample.finish_reason or ""),
            "error": plain(sample.error or ""),
        }


def _names(record: RunRecord) -> dict[str, Any]:
    return {"host": record.host, "profile": plain(record.profile.id), "run": record.id}


def _field(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join("?" if item is None else str(item) for item in value)  # each keeps its place
    return value


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    return table(columns, ([_text(row[column]) for column in columns] for row in rows)) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)
