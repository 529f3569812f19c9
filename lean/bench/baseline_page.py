"""A comparison as a folder: versus.json, report.md and versus.png, all from the document alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from lean.bench.baseline_comparison import BaselineComparison, Side
from lean.bench.baseline_plot import draw_comparison
from lean.contracts import to_data
from lean.errors import PreflightError
from lean.files.staging import publish, staged_directory
from lean.markdown import number_or_dash, table

DOCUMENT = "versus.json"


def write_comparison(found: BaselineComparison, folder: Path) -> None:
    """Write the folder whole or not at all. Errors: `PreflightError` when it is there already."""
    if folder.exists():
        raise PreflightError(f"{folder}: exists; a comparison is never rewritten")
    staged = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    with staged_directory(staged):
        text = json.dumps(to_data(found), indent=1, allow_nan=False) + "\n"
        (staged / DOCUMENT).write_text(text, encoding="utf-8")
        (staged / "report.md").write_text(comparison_page(found), encoding="utf-8")
        draw_comparison(found, staged / "versus.png")
        publish(staged, folder)


def comparison_page(found: BaselineComparison) -> str:
    """The comparison in Markdown."""
    parts = [
        f"# {found.ours.system} and {found.peer.system}: {found.profile} on {found.host}",
        f"{headline(found)}",
        *_label(found),
        "## Generated tokens/s",
        table(
            ("system", "plain (first run)", "median of runs", "best of runs", "runs"),
            [_row(side) for side in (found.ours, found.peer)],
        ),
        "A run's figure is the median over its measured rounds. " + _ratio_lines(found),
        "## Runs",
        table(
            ("system", "run", "tokens/s", "TTFT ms", "TPOT ms", "sha256 of run.json"),
            [
                (
                    side.system,
                    f"`{file.run}`",
                    number_or_dash(file.tokens_per_s),
                    number_or_dash(file.ttft_s, 1e3),
                    number_or_dash(file.tpot_s, 1e3),
                    f"`{file.sha256}`",
                )
                for side in (found.ours, found.peer)
                for file in side.runs
            ],
        ),
        "![tokens/s of every run](versus.png)",
        "## Fairness gate",
        table(
            ("rule", "", "seen"),
            [
                (check.rule, "passed" if check.passed else "**broken**", check.detail)
                for check in found.checks
            ],
        ),
        "## How it was done",
        f"{found.ours.system}: {found.ours.as_run}. {found.peer.system}: {found.peer.as_run}.",
        table(("UTC", "step", ""), [(step.at_utc, step.what, step.detail) for step in found.steps]),
        "Each run's `run.json` holds the server's command, its packages and every raw sample; "
        "`python -m lean.bench versus` makes this page of those records again.",
    ]
    return "\n\n".join(parts) + "\n"


def headline(found: BaselineComparison) -> str:
    """What came out, in a sentence."""
    if found.ratios is None:
        return f"**Does not count**: {'; '.join(found.reasons) or 'a run has no tokens/s'}."
    claim, interval = found.ratios.claim, found.ratios.claim_interval
    spread = (
        f" ({found.confidence:.0%} interval {interval.low:.2f} to {interval.high:.2f})" if interval else ""
    )
    bar = _bar(found, claim, interval.low if interval else 0.0)
    return (
        f"**{claim:.2f} times** {found.peer.system}{spread}: our median over its best. {bar} "
        f"Label: {found.label}."
    )


def _bar(found: BaselineComparison, claim: float, low: float) -> str:
    """How the claim stands to the bar: it reaches it where its whole interval does."""
    if found.label != "fixed-contract":
        return "It is no claim."
    if claim < found.bar:
        return f"It does not reach the bar of {found.bar:.2f}."
    if low < found.bar:
        return f"It is over the bar of {found.bar:.2f}, but its interval is not."
    return f"It reaches the bar of {found.bar:.2f}."


def _label(found: BaselineComparison) -> Sequence[str]:
    return [f"Exploratory, because {'; '.join(found.label_reasons)}."] if found.label_reasons else []


def _ratio_lines(found: BaselineComparison) -> str:
    if found.ratios is None:
        return "No ratio is given of runs that do not count."
    r = found.ratios
    lines = f"Ours over theirs: plain {r.plain:.3f}, median {r.median:.3f}, best {r.best:.3f}"
    if r.first_token is not None and r.per_token is not None:
        lines += f"; TTFT {r.first_token:.3f} and TPOT {r.per_token:.3f} of theirs (less is better)"
    return f"{lines}."


def _row(side: Side) -> tuple[str, ...]:
    figures = map(number_or_dash, (side.plain, side.median, side.best))
    return side.system, *figures, str(len(side.runs))
