"""The picture of a comparison."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from lean.bench.baseline_comparison import BaselineComparison
from lean.markdown import number


def draw_comparison(found: BaselineComparison, file: Path) -> None:
    """A point for every run and a bar for each side's median, in generated tokens/s."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    sides = (found.peer, found.ours)
    for place, (side, colour) in enumerate(zip(sides, ("#8a8f98", "#1f6feb"), strict=True)):
        rates = [file.tokens_per_s for file in side.runs if file.tokens_per_s is not None]
        if side.median is not None:
            axes.barh(place, side.median, height=0.5, color=colour, alpha=0.85)
            axes.annotate(
                f"{number(side.median)} tokens/s",
                (side.median, place),
                xytext=(-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                color="white",
            )
        axes.plot(rates, [place + 0.34] * len(rates), "o", color=colour, markersize=5, alpha=0.9)
    axes.set_yticks(range(len(sides)), [side.system for side in sides])
    axes.set_ylim(-0.5, len(sides) - 0.35)
    axes.set_xlim(left=0)
    axes.set_xlabel("generated tokens/s: bar, the median of runs; points, each run")
    title = f"{found.contract}, {found.profile}, {found.host}"
    axes.set_title(title if found.status == "ok" else f"{title} (does not count)", fontsize=10, loc="left")
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    figure.savefig(file, dpi=150)
