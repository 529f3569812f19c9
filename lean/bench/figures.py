"""Figures of kept runs for a page or a paper: time per token, latency distributions, throughput over batch.

matplotlib is imported with this module, so only where a figure is drawn. The same runs give the same bytes
with the same matplotlib.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from lean.bench.metrics import RequestMetrics, request_metrics, token_gaps_s
from lean.bench.record import RunRecord
from lean.bench.results import read_unaltered
from lean.bench.run_row import RunRow
from lean.errors import UsageError
from lean.markdown import plain
from lean.percentile import percentile

# Okabe and Ito's palette, told apart by colour-blind readers; its yellow is too pale for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", "-.", ":")
_INK, _FAINT = "#222222", "#666666"
MOST_RUNS = 7
EARLIER_RUNS = 8  # of each profile, beside its newest
STEPS = 30  # points of the bound between two batches
WIDE, DPI = (8.0, 4.5), 200
Styled = tuple[str, str, RunRecord]


def runs_like(first: RunRecord, rows: Iterable[RunRow]) -> tuple[RunRecord, ...]:
    """The sound runs of the same machine, contract, backend and shape at any batch, some of each profile.

    Errors: `LeanError` naming one that is no longer what it was when it was listed.
    """
    by_profile: dict[str, list[RunRow]] = defaultdict(list)
    for row in rows:
        sound = (row.host, row.contract, row.status, row.load)
        if sound == (first.host, first.contract.id, "ok", None):
            by_profile[row.profile].append(row)
    newest = (sorted(found, key=lambda r: r.id)[-1 - EARLIER_RUNS :] for found in by_profile.values())
    runs = (read_unaltered(Path(row.path)) for found in newest for row in found)
    return tuple(run for run in runs if _kind(run) == _kind(first))


def _kind(run: RunRecord) -> tuple[object, ...]:
    b, p = run.backend, run.profile
    backend = (b.name, b.device, b.compute_dtype, b.options) if b else None
    return run.contract_sha256, p.prompt_tokens, p.decode_tokens, backend


def draw_figures(runs: Sequence[RunRecord], batches: Sequence[RunRecord], out: Path) -> tuple[Path, ...]:
    """Draw what these runs hold into the folder `out`, made if it is not there; returns the files, in order.

    `batches`: runs of one machine, contract and shape at any batch, for throughput over batch. Errors:
    `UsageError` for too many runs, or when nothing in them can be drawn.
    """
    if len(runs) > MOST_RUNS:
        raise UsageError(f"--runs: {len(runs)} of them; at most {MOST_RUNS} can be told apart in one figure")
    figures = {
        "token_times.png": _token_times(runs),
        "latency.png": _latency(runs),
        "throughput.png": _throughput(batches),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    if not drawn:
        raise UsageError("--runs: no request in them was measured, so there is nothing to draw")
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(out / name, metadata={"Software": None})  # no version stamp: same runs, same bytes
    return tuple(out / name for name in drawn)


def _token_times(runs: Sequence[RunRecord]) -> Figure | None:
    """The median gap before each token over all requests, and the band that holds nine of ten."""
    figure, axes = _page()
    every: list[float] = []
    for colour, label, run in _styled(runs):
        at: dict[int, list[float]] = defaultdict(list)
        for sample in run.measured:
            for position, gap in token_gaps_s(sample):
                at[position].append(gap * 1e3)
        if not at:
            continue
        positions = sorted(at)
        medians = [percentile(at[p], 50) for p in positions]
        low, high = ([percentile(at[p], q) for p in positions] for q in (5, 95))
        axes.fill_between(positions, low, high, color=colour, alpha=0.18, linewidth=0)
        text = f"{label}: median {percentile(medians, 50):.3g} ms ({len(run.measured)} requests)"
        axes.plot(positions, medians, color=colour, linewidth=1.3, label=text)
        every += [*medians, *high]
    if not every:
        return None
    note = f"line: median of all requests, band: p5 to p95{_limit(axes, every)}"
    axes.set_xlabel("position of the token in the answer")
    axes.set_ylabel("time per token (ms)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.01)
    _finish(figure, axes, "Time per token over position", runs, note)
    return figure


def _limit(axes: Axes, values: Sequence[float]) -> str:
    """From zero, and not up to a few stray gaps, which are counted instead: the words that say so."""
    body = percentile(values, 99)
    top = 1.25 * body if max(values) > 2 * body else 1.15 * max(values)
    axes.set_ylim(0, top)
    beyond = sum(value > top for value in values)
    return f"; {beyond} points lie above, the highest at {max(values):.3g} ms" if beyond else ""


def _latency(runs: Sequence[RunRecord]) -> Figure | None:
    """Empirical distribution functions: every request is a step, nothing is smoothed."""
    figure = Figure(figsize=(10.0, 4.2), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    names = (
        "time to first token, TTFT (ms)",
        "time per output token, TPOT (ms)",
        "request latency, E2E (ms)",
    )
    seen = False
    for index, (colour, label, run) in enumerate(_styled(runs)):
        known = _requests(run)
        seen = seen or bool(known)
        for axes, values in zip(
            panels,
            ([m.ttft_s for m in known], [m.tpot_s for m in known], [m.e2e_s for m in known]),
            strict=True,
        ):
            if values:
                style = _DASHES[index % len(_DASHES)]
                text = f"{label} ({len(values)} requests)"
                axes.ecdf([v * 1e3 for v in values], color=colour, linewidth=1.8, linestyle=style, label=text)
    if not seen:
        return None
    for axes, name in zip(panels, names, strict=True):
        axes.set_xlabel(name)
        axes.axhline(0.5, color=_FAINT, linewidth=0.6, linestyle=":")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.08)
        _quiet(axes)
    panels[0].set_ylabel("share of requests")
    panels[0].set_ylim(0, 1.03)
    panels[0].set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, texts, loc="outside lower center", ncols=min(len(texts), 2), frameon=False, fontsize=9
    )
    figure.suptitle(f"Latency of requests{_common(runs)}", x=0.01, ha="left", fontsize=12, color=_INK)
    return figure


def _throughput(runs: Sequence[RunRecord]) -> Figure | None:
    """Tokens/s of all streams at each batch, with what the memory's bandwidth would allow."""
    points: dict[int, list[RunRecord]] = defaultdict(list)
    for run in runs:
        if run.metrics.tokens_per_s is not None:
            points[run.profile.batch].append(run)
    if not points:
        return None
    figure, axes = _page()
    newest = {batch: max(found, key=lambda run: run.started_utc) for batch, found in sorted(points.items())}
    batches = sorted(newest)
    bounded = ""
    for basis, style in (("measured", "--"), ("data sheet", ":")):
        gbs = _bandwidth(runs, basis)
        if gbs is not None and (bound := _bound(newest, gbs)):
            name = "reading alone, measured" if basis == "measured" else "data sheet"
            text = f"bound by bandwidth: {name}, {gbs:,.0f} GB/s"
            colour = _INK if style == "--" else _FAINT
            bounded = "; the bounds count decode steps only"
            if len(newest) == 1:  # a line of no length cannot be seen
                axes.axhline(bound[0][1], color=colour, linestyle=style, label=text)
            else:
                axes.plot(*zip(*bound, strict=True), color=colour, linestyle=style, label=text)
    older = [(batch, run) for batch, found in points.items() for run in found if run is not newest[batch]]
    for batch, run in older:
        rate = run.metrics.tokens_per_s
        assert rate is not None
        label = "earlier runs, median" if (batch, run) == older[0] else None
        axes.plot(batch, rate.median, "o", markersize=5, markerfacecolor="none", color=_FAINT, label=label)
    rates = [rate for b in batches if (rate := newest[b].metrics.tokens_per_s) is not None]
    medians = [rate.median for rate in rates]
    spread = [[r.median - r.minimum for r in rates], [r.maximum - r.median for r in rates]]
    axes.errorbar(
        batches, medians, yerr=spread, fmt="o-", color=_COLOURS[0], capsize=4, linewidth=1.6, markersize=7,
        label="measured, newest run of a batch: median, least and most of its rounds",
    )  # fmt: skip
    for batch, median in zip(batches, medians, strict=True):
        axes.annotate(
            f"{median:,.0f}", (batch, median), (6, -14), textcoords="offset points", color=_COLOURS[0]
        )
    axes.set_xlabel("streams at once (batch)")
    axes.set_ylabel("generated tokens/s, all streams")
    axes.xaxis.set_major_locator(FixedLocator(batches))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.margins(x=0.08)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    profile = newest[batches[0]].profile
    shape = f"{profile.prompt_tokens} tokens in, {profile.decode_tokens} out{bounded}"
    _finish(figure, axes, "Throughput over batch", [newest[b] for b in batches], shape)
    return figure


def _bandwidth(runs: Sequence[RunRecord], basis: str) -> float | None:
    """GB/s: the median of what reading alone reached in these runs, or what the data sheet says."""
    if basis == "data sheet":
        return runs[0].contract.target_facts.memory_bandwidth_gbs
    known = [
        m.bandwidth_gbs
        for run in runs
        if (m := run.metrics).bandwidth_basis == "measured" and m.bandwidth_gbs
    ]
    return statistics.median(known) if known else None


def _bound(newest: Mapping[int, RunRecord], gbs: float) -> list[tuple[float, float]]:
    """(batch, tokens/s) when a step takes only the time to read its least bytes, as the records have them.

    Bytes grow linearly with the batch: the weights once, keys and values once a stream.
    """
    known = [(batch, b) for batch, run in newest.items() if (b := run.metrics.bytes_per_step) is not None]
    line = []
    for (here, low), (there, high) in itertools.pairwise(known * 2 if len(known) == 1 else known):
        for i in range(STEPS + 1):
            batch = here + (there - here) * i / STEPS
            line.append((batch, batch * gbs * 1e9 / (low + (high - low) * i / STEPS)))
    return line


def _styled(runs: Sequence[RunRecord]) -> list[Styled]:
    """A colour and a name for each run: no more than what tells it from the others."""
    says: tuple[Callable[[RunRecord], str], ...] = (
        lambda r: r.host,
        lambda r: r.contract.id,
        lambda r: r.profile.id,
        lambda r: r.backend.name if r.backend else "unknown",
        lambda r: r.release.git_sha[:7] + ("-dirty" if r.release.dirty else ""),
    )
    told = [say for say in says if len({say(run) for run in runs}) > 1] or [says[-1]]
    labels = [plain(", ".join(say(run) for say in told)) for run in runs]
    if len(set(labels)) < len(labels):
        labels = [f"{label}, {run.id[:15]}" for label, run in zip(labels, runs, strict=True)]
    return [
        (_COLOURS[i % len(_COLOURS)], label, run)
        for i, (label, run) in enumerate(zip(labels, runs, strict=True))
    ]


def _requests(run: RunRecord) -> list[RequestMetrics]:
    return [metrics for sample in run.measured if (metrics := request_metrics(sample)) is not None]


def _page() -> tuple[Figure, Axes]:
    figure = Figure(figsize=WIDE, dpi=DPI, layout="constrained")
    return figure, figure.add_subplot()


def _common(runs: Sequence[RunRecord]) -> str:
    """What all the runs share, for a title."""
    shared = []
    for values in (
        {run.contract.id for run in runs},
        {run.profile.id for run in runs},
        {run.host for run in runs},
    ):
        shared += sorted(values) if len(values) == 1 else []
    return plain(f": {', '.join(shared)}") if shared else ""


def _finish(figure: Figure, axes: Axes, title: str, runs: Sequence[RunRecord], note: str) -> None:
    figure.suptitle(f"{title}{_common(runs)}", x=0.01, ha="left", fontsize=12, color=_INK)
    axes.set_title(note, loc="left", fontsize=8.5, color=_FAINT)
    axes.legend(fontsize=8.5, frameon=False, loc="best")
    _quiet(axes)


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
