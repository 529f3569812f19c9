"""plot.png of a run: when tokens came, how their gaps spread, and what each request took.

The only user of matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from lean.bench.metrics import RequestMetrics, request_metrics, token_gaps_s
from lean.bench.record import RunRecord
from lean.bench.sample import Sample
from lean.percentile import percentile

# Okabe and Ito's palette, made to be told apart by colour-blind readers; one colour per stream (at most 8).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_NAMED = 10  # streams that the legend names
_INK, _FAINT = "#222222", "#888888"
_BINS = 60
_PLAIN = StrMethodFormatter("{x:g}")
_MARGINS = {"left": 0.06, "right": 0.99, "top": 0.89, "bottom": 0.095, "hspace": 0.27, "wspace": 0.22}
SIZE_INCHES, DPI = (12.0, 8.0), 120

Measured = Sequence[tuple[Sample, RequestMetrics]]


def draw_plot(record: RunRecord, file: Path) -> bool:
    """Draw the measured requests into `file`; False, and no file, where nothing was measured.

    1440 x 960 pixels. The same record gives the same bytes with the same matplotlib.
    """
    measured = [
        (sample, metrics) for sample in record.measured if (metrics := request_metrics(sample)) is not None
    ]
    if not measured:
        return False
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI)
    # Fixed margins: a computed layout draws everything several times, a second more per run.
    grid = figure.add_gridspec(2, 3, height_ratios=(1.15, 1.0), **_MARGINS)
    _trace(figure.add_subplot(grid[0, :]), record, measured)
    _distribution(figure.add_subplot(grid[1, 0]), measured)
    firsts = [metrics.ttft_s * 1e3 for _, metrics in measured]
    rates = [metrics.tokens_per_s for _, metrics in measured]
    _per_request(figure.add_subplot(grid[1, 1]), measured, firsts, "Time to first token", "TTFT (ms)")
    _per_request(figure.add_subplot(grid[1, 2]), measured, rates, "Rate of a request", "tokens/s")
    figure.suptitle(_title(record), x=0.01, y=0.985, ha="left", fontsize=14, fontweight="bold", color=_INK)
    figure.supxlabel(_footer(record), x=0.01, y=0.012, ha="left", fontsize=8, color=_FAINT)
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


def _trace(axes: Axes, record: RunRecord, measured: Measured) -> None:
    several = record.profile.clients > 1
    pale = ", later rounds paler" if several else ""
    axes.set_title(f"Gap before each token{pale}", loc="left", fontsize=11)
    axes.set_xlabel("token number in the answer")
    last_round = max(sample.round for sample, _ in measured)
    pooled: list[float] = []
    labelled: set[str] = set()
    for sample, _ in measured:
        gaps = [(position, gap * 1e3) for position, gap in token_gaps_s(sample)]
        if not gaps:
            continue
        name = f"stream {sample.stream}" if several else f"round {sample.round}"
        opacity = 1.0 - 0.6 * sample.round / max(last_round, 1) if several else 0.85
        label = None if name in labelled or len(labelled) == _NAMED else name
        labelled |= {label} if label else set()
        colour = _colour(sample.stream if several else sample.round)
        axes.plot(*zip(*gaps, strict=True), color=colour, alpha=opacity, linewidth=0.9, label=label)
        pooled += [gap for _, gap in gaps]
    if not pooled:
        _say(axes, "the service did not tell how many tokens its chunks carry")
        return
    median = percentile(pooled, 50)
    axes.axhline(median, color=_INK, linewidth=1.0, linestyle="--", label=f"median {median:.2f} ms")
    axes.set_xlim(1, record.profile.decode_tokens)
    if _is_wide(pooled):
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(0.8 * min(pooled), median / 100))  # less means two chunks came together
        axes.yaxis.set_major_formatter(_PLAIN)
        axes.set_ylabel("gap (ms, log scale)")
    else:
        axes.set_ylim(0, 1.15 * max(pooled))
        axes.set_ylabel("gap (ms)")
    axes.legend(fontsize=8, ncols=5, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderpad=0)
    _quiet(axes)


def _is_wide(gaps: Sequence[float]) -> bool:
    """Whether a linear axis would squeeze the body of the gaps into its lowest eighth."""
    return min(gaps) > 0 and max(gaps) > 8 * percentile(gaps, 50)


def _distribution(axes: Axes, measured: Measured) -> None:
    axes.set_title("Inter-token latency, all requests", loc="left", fontsize=11)
    axes.set_ylabel("tokens")
    gaps = [gap * 1e3 for _, metrics in measured for gap in metrics.itl_s]
    if not gaps:
        _say(axes, "no token counts per chunk")
        return
    low, high = min(gaps), max(gaps)
    wide = _is_wide(gaps)
    if wide:
        low = max(low, percentile(gaps, 50) / 100)
        edges = [low * (high / low) ** (i / _BINS) for i in range(_BINS + 1)]
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_PLAIN)
    else:
        edges = [low + (high - low or 1.0) * i / _BINS for i in range(_BINS + 1)]
    axes.hist([max(gap, low) for gap in gaps], bins=edges, color=_COLOURS[0], alpha=0.75)
    axes.set_xlabel("ITL (ms, log scale)" if wide else "ITL (ms)")
    for percent, style in ((50, "-"), (95, "--"), (99, ":")):
        value = percentile(gaps, percent)
        name = "median" if percent == 50 else f"p{percent}"
        label = f"{name} {value:.2f} ms"
        axes.axvline(value, ymax=0.74, color=_INK, linewidth=1.1, linestyle=style, label=label)
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=8, loc="upper right", frameon=False)
    _quiet(axes)


def _per_request(axes: Axes, measured: Measured, values: Sequence[float], title: str, unit: str) -> None:
    median = percentile(values, 50)
    axes.set_title(f"{title}, median {median:.1f} {unit.split('(')[-1].rstrip(')')}", loc="left", fontsize=11)
    axes.set_xlabel("measured round")
    axes.set_ylabel(unit)
    streams = max(sample.stream for sample, _ in measured) + 1
    rounds = max(sample.round for sample, _ in measured) + 1
    for (sample, _), value in zip(measured, values, strict=True):
        place = sample.round + 0.6 * ((sample.stream + 0.5) / streams - 0.5)  # streams side by side
        mark = _MARKS[sample.stream % len(_MARKS)]
        colour = _colour(sample.stream if streams > 1 else sample.round)
        axes.plot(place, value, mark, color=colour, markersize=6, markeredgecolor=_INK, markeredgewidth=0.4)
    axes.axhline(median, color=_INK, linewidth=1.0, linestyle="--")
    axes.set_ylim(0, 1.2 * max(values))
    axes.set_xlim(-0.5, rounds - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _quiet(axes)


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_FAINT)
    axes.set_xticks([])
    axes.set_yticks([])
