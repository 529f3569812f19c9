"""A file of step times read back, and what its regions come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.errors import IntegrityError
from lean.leanserve.region_times import REGIONS, SCHEMA, TAXONOMY, StepTimes
from lean.percentile import percentile
from lean.strict_json import parse_object


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionTimes:
    """A file read back: its header without what every file has, and its steps."""

    about: Mapping[str, Any]
    steps: tuple[StepTimes, ...]


def read_regions(path: Path) -> RegionTimes:
    """Errors: `IntegrityError` naming what is wrong: another version, a row that is missing, no end."""
    try:
        header, *rows, end = (parse_object(line) for line in path.read_bytes().splitlines())
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path}: no region times: {error}") from None
    stated = header.pop("schema", None), header.pop("taxonomy", None), header.pop("regions", None)
    if stated != (SCHEMA, TAXONOMY, list(REGIONS)):
        raise IntegrityError(f"{path}: {stated[0]} with {stated[1]}; this release reads {SCHEMA}, {TAXONOMY}")
    if end != {"rows": len(rows)} or [row.pop("step", None) for row in rows] != list(range(len(rows))):
        raise IntegrityError(f"{path}: rows are missing; it was cut, or its writer was killed")
    try:
        steps = tuple(StepTimes(**(row | {"work_s": tuple(row["work_s"])})) for row in rows)
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"{path}: a row is no step: {error}") from None
    return RegionTimes(about=header, steps=steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Seconds: how many there are, their median and 99th percentile; None of none."""

    count: int
    median_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSummary:
    """All steps of a file: each region's `work` and share of it all, whole steps, and waits by `After`."""

    work: dict[str, Spread]
    shares: dict[str, float]
    steps: Spread
    waits: dict[str, Spread]


def summarize(steps: Sequence[StepTimes]) -> RegionSummary:
    """Medians, 99th percentiles and shares. Nothing was waited for before the first step."""
    work = {name: [step.work_s[index] for step in steps] for index, name in enumerate(REGIONS)}
    every = sum(sum(values) for values in work.values())
    return RegionSummary(
        work={name: _spread(values) for name, values in work.items()},
        shares={name: sum(values) / every if every else 0.0 for name, values in work.items()},
        steps=_spread([sum(step.work_s) for step in steps]),
        waits={
            after: _spread([step.wait_s for step in steps if step.after == after])
            for after in ("step", "prompt")
        },
    )


def _spread(values: Sequence[float]) -> Spread:
    if not values:
        return Spread(count=0, median_s=None, p99_s=None)
    return Spread(count=len(values), median_s=percentile(values, 50), p99_s=percentile(values, 99))
