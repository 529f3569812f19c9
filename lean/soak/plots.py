"""Figures of a soak for its page or a paper, from summaries alone; matplotlib is imported with this module.

The same summaries give the same bytes with the same matplotlib.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lean.contracts.soak import SoakPlan
from lean.soak.student import t_quantile
from lean.soak.summary import CONFIDENCE, ArmSummary, Spread

# Okabe and Ito's palette, told apart by colour-blind readers; its yellow is too pale for a line on white,
# and near-black is the baseline's.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_DASHES = ("-", "--", "-.", ":")
_INK, _FAINT = "#222222", "#666666"
_NAME = 22  # characters of an arm's name beside its line
DPI = 200


def draw_soak(plan: SoakPlan, summaries: Sequence[ArmSummary], folder: Path) -> tuple[str, ...]:
    """Draw `soak.png` and, where a long decode was measured, `long_decode.png`; returns their names.

    Nothing is drawn, and nothing returned, where no arm has a number.
    """
    figures = {"soak.png": _arms(plan, summaries), "long_decode.png": _positions(plan, summaries)}
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        figure.savefig(folder / name, metadata={"Software": None})  # no version stamp: same bytes
    return tuple(drawn)


def _arms(plan: SoakPlan, summaries: Sequence[ArmSummary]) -> Figure | None:
    """A line for each arm, the baseline on top: walls, quantiles of TPOT, and scores if the plan asks any."""
    if all(one.wall is None and one.tpot is None and one.score is None for one in summaries):
        return None
    ordered = sorted(summaries, key=lambda one: one.name != plan.baseline)  # stable: then the plan's order
    figure = Figure(figsize=(11.0, 1.7 + 0.42 * len(ordered)), dpi=DPI, layout="constrained")
    ratios = (1.35, 1.2, 0.8) if plan.quality is not None else (1.35, 1.2)
    walls, times, *scores = figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios)
    colours = [_colour(plan, one) for one in ordered]
    _walls(walls, plan, ordered, colours)
    _times(times, ordered, colours)
    if plan.quality is not None:
        _scores(scores[0], plan, ordered, colours)
    walls.set_yticks(range(len(ordered)), [_name(plan, one) for one in ordered])
    walls.set_ylim(len(ordered) - 0.4, -0.6)
    for axes in (walls, times, *scores):
        _quiet(axes)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(4 if axes in scores else 5, integer=axes in scores))
    figure.suptitle(f"Soak {plan.id}", x=0.01, ha="left", fontsize=12, color=_INK)
    return figure


def _walls(axes: Axes, plan: SoakPlan, arms: Sequence[ArmSummary], colours: Sequence[str]) -> None:
    axes.set_title("Wall of a replay", loc="left", fontsize=10)
    axes.set_xlabel("seconds; ring: a replay, bar: mean, line: its 95 % interval", fontsize=8.5)
    for place, (one, colour) in enumerate(zip(arms, colours, strict=True)):
        if one.wall is None:
            _absent(axes, place, "not run" if one.not_run else "no replay counts")
            continue
        mean, margin = one.wall.mean, _margin(one.wall)
        below = [place + 0.2] * len(one.wall.samples)
        axes.plot(
            one.wall.samples, below, "o", color=colour, markersize=4, markerfacecolor="white", alpha=0.9
        )
        axes.plot([mean - margin, mean + margin], [place - 0.12] * 2, color=colour, linewidth=2)
        axes.plot([mean], [place - 0.12], "|", color=colour, markersize=13, markeredgewidth=2.4)
    base = next((one.wall for one in arms if one.name == plan.baseline), None)
    if base is not None:
        axes.axvline(base.mean, color=_FAINT, linewidth=0.8, linestyle=":")
    axes.margins(x=0.08)


def _times(axes: Axes, arms: Sequence[ArmSummary], colours: Sequence[str]) -> None:
    axes.set_title("Time per output token", loc="left", fontsize=10)
    axes.set_xlabel("milliseconds; point: p50, bar: p95, cross: p99", fontsize=8.5)
    for place, (one, colour) in enumerate(zip(arms, colours, strict=True)):
        if one.tpot is None:
            _absent(axes, place, "none")
            continue
        p50, p95, p99 = (1e3 * value for value in (one.tpot.p50, one.tpot.p95, one.tpot.p99))
        axes.plot([p50, p99], [place] * 2, color=colour, linewidth=1.4, alpha=0.55)
        axes.plot([p50], [place], "o", color=colour, markersize=6)
        axes.plot([p95], [place], "|", color=colour, markersize=13, markeredgewidth=2.4)
        axes.plot([p99], [place], "x", color=colour, markersize=6, markeredgewidth=1.6)
    axes.margins(x=0.08)


def _scores(axes: Axes, plan: SoakPlan, arms: Sequence[ArmSummary], colours: Sequence[str]) -> None:
    assert plan.quality is not None
    tasks = plan.quality.tasks
    axes.set_title("Score", loc="left", fontsize=10)
    for place, (one, colour) in enumerate(zip(arms, colours, strict=True)):
        if one.score is None:
            _absent(axes, place, "no score")
            continue
        axes.barh(place, one.score, height=0.45, color=colour, alpha=0.8)
        fits = one.score > 0.12 * tasks
        at, colour = (0, "white") if fits else (one.score, _INK)
        says = str(one.score)
        axes.annotate(says, (at, place), (5, 0), textcoords="offset points", va="center", color=colour)
    floor = plan.thresholds.floor
    base = next((one.score for one in arms if one.name == plan.baseline), None)
    axes.axvline(floor, color=_INK, linewidth=0.9, linestyle=":")
    says = f"right of {tasks} tasks; dotted: floor {floor}"
    if base is not None:
        least = base - plan.thresholds.drop
        axes.axvline(least, color=_INK, linewidth=0.9, linestyle="--")
        says += f"\ndashed: baseline − {plan.thresholds.drop} = {least}"
    axes.set_xlabel(says, fontsize=8.5)
    axes.set_xlim(0, tasks * 1.12)


def _positions(plan: SoakPlan, summaries: Sequence[ArmSummary]) -> Figure | None:
    """The median gap over the position in the answer, and the band that holds nine of ten."""
    others = [one.name for one in summaries if one.name != plan.baseline]
    known = [one for one in summaries if one.long_decode_curve]
    if not known:
        return None
    figure = Figure(figsize=(9.0, 4.2 + 0.1 * len(known)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    highest = 0.0
    for one in known:
        turn = others.index(one.name) if one.name in others else 0
        colour = _COLOURS[turn % len(_COLOURS)] if one.name in others else _INK
        curve = one.long_decode_curve
        positions = [point.position for point in curve]
        medians = [1e3 * point.p50 for point in curve]
        low, high = [1e3 * point.p5 for point in curve], [1e3 * point.p95 for point in curve]
        axes.fill_between(positions, low, high, color=colour, alpha=0.13, linewidth=0)
        p95 = f", p95 {1e3 * one.long_decode.p95:.2f} ms" if one.long_decode else ""
        dash = _DASHES[turn // len(_COLOURS) % len(_DASHES)]
        axes.plot(positions, medians, color=colour, linewidth=1.4, linestyle=dash, label=f"{one.name}{p95}")
        highest = max(highest, *medians, sorted(high)[int(0.98 * (len(high) - 1))])
    axes.set_ylim(0, 1.15 * highest)
    axes.set_xlabel("position of the token in the answer")
    axes.set_ylabel("time per output token (ms)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.01)
    axes.set_title("line: median over replays, band: p5 to p95", loc="left", fontsize=8.5, color=_FAINT)
    figure.legend(loc="outside lower center", ncols=min(len(known), 2), frameon=False, fontsize=8.5)
    _quiet(axes)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    figure.suptitle(f"Long decode: soak {plan.id}", x=0.01, ha="left", fontsize=12, color=_INK)
    return figure


def _margin(wall: Spread) -> float:
    """Half of Student's interval of the mean."""
    return 0.0 if wall.sd is None else t_quantile(CONFIDENCE, wall.n - 1) * wall.sd / math.sqrt(wall.n)


def _colour(plan: SoakPlan, one: ArmSummary) -> str:
    """The baseline stands out, and so do arms that are damaged on purpose."""
    if one.name == plan.baseline:
        return _INK
    return _COLOURS[1] if one.control is not None else _COLOURS[0]


def _name(plan: SoakPlan, one: ArmSummary) -> str:
    """An arm's name in lines of at most so many characters, and what it is, if not just an arm."""
    lines = [""]
    for part in re.findall(r"[^-_]*[-_]?", one.name):
        if len(lines[-1]) + len(part) > _NAME:
            lines.append("")
        lines[-1] += part
    if one.name == plan.baseline:
        lines.append("(baseline)")
    elif one.control is not None:
        lines.append(f"(damaged: {one.control})")
    return "\n".join(lines)


def _absent(axes: Axes, place: int, says: str) -> None:
    axes.text(
        0.5, place, says, transform=axes.get_yaxis_transform(), ha="center", va="center", color=_FAINT,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
