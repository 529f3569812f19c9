"""A sweep for people: one line a setting, over its runs that count, and what is missing by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import median

from lean.markdown import cell as one_line
from lean.markdown import table
from remote.appliance.sweep_plan import Cell, Figures, Setting, Sweep

COLUMNS = (
    *("profile", "runner", "split-K", "load", "runs", "tokens/s", "lowest", "highest", "best round"),
    *("TTFT ms", "TPOT ms", "goodput/s", "refused"),
)


def summary_rows(sweep: Sweep) -> list[tuple[str, ...]]:
    """By `COLUMNS`: over the runs of a setting the median of their medians, lowest and highest of them."""
    settings: dict[Setting, list[Cell]] = {}
    for cell in sweep.cells:
        settings.setdefault(cell.setting, []).append(cell)
    return [_row(setting, cells) for setting, cells in settings.items()]


def problems(sweep: Sweep) -> list[str]:
    """A line for each cell that has no run that counts, and why."""
    return [
        f"{cell.name}: {cell.state}"
        + (f", {cell.problem.kind}: {cell.problem.message}" if cell.problem else "")
        for cell in sweep.cells
        if cell.state != "done"
    ]


def releases(sweep: Sweep) -> list[str]:
    """The code that its runs were made with, by the ends of their names."""
    names = (cell.place.rsplit("/", 1)[1].partition("-")[2] for cell in sweep.cells if cell.place)
    return sorted(set(names))


def summary_page(sweep: Sweep) -> str:
    """The summary in Markdown, from the journal alone."""
    states = Counter(cell.state for cell in sweep.cells)
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    lines = [f"# Sweep {sweep.name} on {sweep.host}, {sweep.started_utc}", ""]
    lines += [f"{len(sweep.cells)} cells: {counted}. Pack {sweep.pack or 'not chosen yet'}.", ""]
    lines += [
        "A line is a setting: the median of its runs' medians, the lowest and the highest of them, and the "
        "best round of any. Runs that do not count are left out and named below.",
        "",
    ]
    if len(releases(sweep)) > 1:
        lines += [f"**Its runs are of different code:** {', '.join(releases(sweep))}.", ""]
    lines.append(table(COLUMNS, summary_rows(sweep)))
    if found := problems(sweep):
        lines += ["", "## Without a run that counts", "", *(f"- {one_line(line)}" for line in found)]
    lines += ["", "## Runs", ""]
    lines += [f"- {cell.name}: `{cell.place}`, {cell.label}" for cell in sweep.cells if cell.place]
    return "\n".join(lines) + "\n"


def _row(setting: Setting, cells: list[Cell]) -> tuple[str, ...]:
    found = [cell.figures for cell in cells if cell.state == "done" and cell.figures is not None]
    speeds = _known(found, "tokens_per_s")
    return (
        setting.profile,
        setting.runner or "default",
        "off" if setting.split_k is None else str(setting.split_k),
        setting.load,
        f"{len(found)} of {len(cells)}",
        *(_shown(of(speeds) if speeds else None) for of in (median, min, max)),
        _shown(max(_known(found, "best_tokens_per_s"), default=None)),
        *(_shown(_median(found, name), 1e3) for name in ("ttft_s", "tpot_s")),
        _shown(_median(found, "goodput_per_s")),
        _shown(sum(refused) if (refused := _known(found, "refused")) else None),
    )


def _known(found: Iterable[Figures], name: str) -> list[float]:
    return [value for figures in found if (value := getattr(figures, name)) is not None]


def _median(found: Iterable[Figures], name: str) -> float | None:
    known = _known(found, name)
    return median(known) if known else None


def _shown(value: float | None, factor: float = 1.0) -> str:
    if value is None:
        return "-"
    shown = value * factor
    return f"{shown:.0f}" if abs(shown) >= 10_000 else f"{shown:.4g}"
