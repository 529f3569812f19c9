"""A region record for people, in Markdown, from the record alone."""

from __future__ import annotations

from lean.leanserve.region_times import REGIONS
from lean.markdown import table
from lean.regions.record import RegionRecord
from lean.regions.summary import RegionSummary, Spread

COLUMNS = ("region", "median, ms", "p99, ms", "share of work")


def regions_page(record: RegionRecord) -> str:
    """The page of one record."""
    runner, profile = record.timed.runner, record.timed.profile
    code = f"{record.release.git_sha[:7]}{', dirty' if record.release.dirty else ''}"
    split = "whole" if runner["split_k"] is None else f"in {runner['split_k']} parts a head"
    plain, timed = record.plain.step_ms, record.timed.step_ms
    return (
        f"# Where a decode step goes, {record.plain.started_utc}\n\n"
        f"Host {record.host}, {runner['device']}, code {code}; {record.label}, no measurement of speed.\n"
        f"Profile {profile.id}; pack {record.timed.contract}, LOCK {record.timed.lock[:8]}, "
        f"{record.timed.weights} weights, by the {runner['name']} runner; output projection {split}.\n\n"
        f"A step took {plain:.4g} ms as it serves and {timed:.4g} ms with its regions timed "
        f"({timed / plain:.3f} times): a timed region starts when the one before it has ended.\n\n"
        f"{table(COLUMNS, region_rows(record.summary), right=True)}\n\n"
        f"Taxonomy {record.taxonomy}. Waits lie between steps and are in no region.\n"
    )


def region_rows(summary: RegionSummary) -> list[tuple[str, ...]]:
    """Regions in the order of a step, the whole step, and what was waited before steps."""
    rows = [(name, *_cells(summary.work[name]), f"{summary.shares[name]:.1%}") for name in REGIONS]
    waits = [(f"wait after a {kind}", *_cells(spread), "") for kind, spread in summary.waits.items()]
    return [*rows, (f"step, {summary.steps.count} of them", *_cells(summary.steps), ""), *waits]


def _cells(spread: Spread) -> tuple[str, str]:
    if spread.median_s is None or spread.p99_s is None:
        return "", ""
    return f"{1e3 * spread.median_s:.4f}", f"{1e3 * spread.p99_s:.4f}"
