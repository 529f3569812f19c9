"""plot.png of a run: when tokens came, how their gaps spread, and what each request took. The only user of
matplotlib.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lean.bench.metrics import RequestMetrics, percentile, request_metrics, token_gaps_s
from lean.bench.record import RunRecord
from lean.bench.sample import Sample

# Okabe and Ito's palette, made to be told apart by colour-blind readers; one colour per stream (at most 8).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_INK, _FAINT = "#222222", "#888888"
SIZE_INCHES, DPI = (12.0, 8.0), 120


def draw_plot(record: RunRecord, file: Path) -> bool:
    """Draw the measured requests into `file`; False, and no file, where nothing was measured.

    1440 x 960 pixels. The same record gives the same bytes with the same matplotlib.
    """
    measured = [
        (sample, metrics)
        for sample in record.samples
        if sample.phase == "measured" and (metrics := request_metrics(sample)) is not None
    ]
    if not measured:
        return False
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.15, 1.0))
    _trace(figure.add_subplot(grid[0, :]), record, measured)
    _distribution(figure.add_subplot(grid[1, 0]), measured)
    _per_request(figure.add_subplot(grid[1, 1]), measured, "Time to first token", "TTFT (ms)", "ttft")
    _per_request(
        figure.add_subplot(grid[1, 2]), measured, "Rate of each request", "generated tokens/s", "rate"
    )
    figure.suptitle(_title(record), x=0.01, ha="left", fontsize=14, fontweight="bold", color=_INK)
    figure.supxlabel(_footer(record), x=0.01, ha="left", fontsize=8, color=_FAINT)
    figure.savefig(file, metadata={"Software": None})  # no version stamp: same record, same bytes
    return True


def _title(record: RunRecord) -> str:
    rate = record.metrics.tokens_per_s
    speed = f": {rate.median:,.1f} tokens/s median" if rate else ""
    verdict = {"ok": "", "invalid": ", INVALID RUN", "failed": ", FAILED RUN"}[record.status]
    return f"{record.profile.id} on {record.host}{speed} ({record.label}{verdict})"


def _footer(record: RunRecord) -> str:
    lock = record.pack.lock[:8] if record.pack else "none"
    backend = record.backend.name if record.backend else "unknown"
    return f"{record.contract.id} · {backend} backend · pack {lock} · run {record.id}"


def _trace(axes: Axes, record: RunRecord, measured: list[tuple[Sample, RequestMetrics]]) -> None:
    axes.set_title("Gap before each token", loc="left", fontsize=11)
    axes.set_xlabel("token number in the answer")
    axes.set_ylabel("gap (ms)")
    rounds = max(sample.round for sample, _ in measured) + 1
    pooled: list[float] = []
    labelled: set[int] = set()
    for sample, _ in measured:
        gaps = [(position, gap * 1e3) for position, gap in token_gaps_s(sample)]
        if not gaps:
            continue
        label = None if sample.stream in labelled else f"stream {sample.stream}"
        labelled.add(sample.stream)
        opacity = 0.9 - 0.5 * sample.round / max(rounds - 1, 1)
        axes.plot(*zip(*gaps, strict=True), color=_colour(sample), alpha=opacity, linewidth=0.9, label=label)
        pooled += [gap for _, gap in gaps]
    if not pooled:
        _say(axes, "the service did not tell how many tokens its chunks carry")
        return
    median = percentile(pooled, 50)
    axes.axhline(median, color=_INK, linewidth=0.8, linestyle="--", label=f"median {median:.2f} ms")
    axes.set_xlim(1, record.profile.decode_tokens)
    axes.set_ylim(*_limits(axes, pooled))
    axes.legend(fontsize=8, ncols=5, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderpad=0)
    _quiet(axes)


def _limits(axes: Axes, gaps: list[float]) -> tuple[float, float]:
    """A view that keeps the body readable: a few long gaps are cut off at the top and counted in words."""
    top = 1.15 * max(gaps)
    body = 2.5 * percentile(gaps, 99)
    if top <= body:
        return 0.0, top
    over = sum(gap > body for gap in gaps)
    text = f"{over} gap{'s' if over > 1 else ''} above this view, longest {max(gaps):.1f} ms"
    axes.text(0.995, 0.96, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=_INK)
    return 0.0, body


def _distribution(axes: Axes, measured: list[tuple[Sample, RequestMetrics]]) -> None:
    axes.set_title("Inter-token latency, all requests", loc="left", fontsize=11)
    axes.set_xlabel("ITL (ms)")
    axes.set_ylabel("tokens")
    gaps = [gap * 1e3 for _, metrics in measured for gap in metrics.itl_s]
    if not gaps:
        _say(axes, "no token counts per chunk")
        return
    low, high = min(gaps), max(percentile(gaps, 99) * 1.25, min(gaps) * 1.01)
    axes.hist(gaps, bins=60, range=(low, high), color=_COLOURS[0], alpha=0.75)
    for percent, style in ((50, "-"), (95, "--"), (99, ":")):
        value = percentile(gaps, percent)
        name = "median" if percent == 50 else f"p{percent}"
        axes.axvline(value, color=_INK, linewidth=1.1, linestyle=style, label=f"{name} {value:.2f} ms")
    beyond = sum(gap > high for gap in gaps)
    if beyond:
        axes.plot([], [], " ", label=f"{beyond} beyond the axis")
    axes.legend(fontsize=8, frameon=False, loc="upper right")
    _quiet(axes)


def _per_request(
    axes: Axes, measured: list[tuple[Sample, RequestMetrics]], title: str, unit: str, what: str
) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("measured round")
    axes.set_ylabel(unit)
    values = [metrics.ttft_s * 1e3 if what == "ttft" else metrics.tokens_per_s for _, metrics in measured]
    for (sample, _), value in zip(measured, values, strict=True):
        shift = 0.05 * (sample.stream - max(s.stream for s, _ in measured) / 2)  # streams side by side
        mark = _MARKS[sample.stream % len(_MARKS)]
        axes.plot(sample.round + shift, value, mark, color=_colour(sample), markersize=7, alpha=0.85)
    median = percentile(values, 50)
    axes.axhline(median, color=_INK, linewidth=0.8, linestyle="--", label=f"median {median:.1f}")
    axes.set_ylim(0, 1.25 * max(values))
    axes.set_xlim(-0.5, max(sample.round for sample, _ in measured) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    _quiet(axes)


def _colour(sample: Sample) -> str:
    return _COLOURS[sample.stream % len(_COLOURS)]


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_FAINT)
    axes.set_xticks([])
    axes.set_yticks([])
