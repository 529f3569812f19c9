"""The parts of a soak's page that have a line for each arm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lean.contracts.soak import SoakPlan
from lean.markdown import cell, number, table
from lean.soak.summary import ArmSummary, Quantiles, Spread

_HEAD = (
    *("arm", "score", "replays", "wall s", "change (95 % interval)", "TPOT p50 ms", "p95 ms", "p99 ms"),
    *("long decode p95 ms", "together s"),
)
_DEFINITIONS = """\
- **score**: tasks answered right, of a quality pass whose every answer came back whole; else there is none.
- **wall**: the turns' times of one replay of the conversations, added. A replay counts when each of its
  answers has all tokens that were asked for. ± is the sample standard deviation.
- **change**: mean wall over the baseline's, less 1, with Welch's 95 % interval of that ratio.
- **TPOT**: time between two tokens after the first. Quantiles are over all such gaps of all replays that
  count, by linear interpolation. A chunk's time is shared by the tokens it carried.
- **long decode**: the same of one long answer, its end of sequence ignored. **together**: from the start of
  a replay of concurrent requests to the end of the last."""


def numbers(summaries: Sequence[ArmSummary]) -> str:
    """A row of figures for each arm, and what they mean."""
    return f"{table(_HEAD, [_numbers(one) for one in summaries])}\n\n{_DEFINITIONS}"


def _numbers(one: ArmSummary) -> tuple[str, ...]:
    return (
        one.name,
        "-" if one.score is None else f"{one.score} of {one.tasks}",
        str(one.replays),
        _spread(one.wall),
        _change(one),
        *(_ms(one.tpot, name) for name in ("p50", "p95", "p99")),
        _ms(one.long_decode, "p95"),
        _spread(one.concurrent),
    )


def _spread(found: Spread | None) -> str:
    if found is None:
        return "-"
    return _seconds(found.mean) + ("" if found.sd is None else f" ± {found.sd:.3g}")


def _seconds(value: float) -> str:
    return number(value) if value < 1000 else f"{value:,.1f}"


def _change(one: ArmSummary) -> str:
    found = one.change
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{100 * found.relative:+.2f} %"
    return f"{100 * found.relative:+.2f} % ({100 * found.low:+.2f} to {100 * found.high:+.2f})"


def _ms(found: Quantiles | None, name: str) -> str:
    return "-" if found is None else number(getattr(found, name) * 1e3)


def settings(summaries: Sequence[ArmSummary]) -> str:
    """What the plan set and what the engine said it runs with; what differs stands out."""
    rows = []
    for one in summaries:
        effective = [f"{name} {_marked(one, name, value)}" for name, value in one.effective]
        asked = [f"{name} {value}" for name, value in one.asked]
        rows.append((one.name, ", ".join(asked), ", ".join(effective) or "not told"))
    found = table(("arm", "asked", "in effect"), rows)
    for one in summaries:
        if one.differing:
            names = ", ".join(one.differing)
            found += f"\n\n**{cell(one.name)} did not run as asked ({cell(names)}): read its figures so.**"
    return found


def _marked(one: ArmSummary, name: str, value: str) -> str:
    return f"**{value}**" if name in one.differing else value


def coherence(summaries: Sequence[ArmSummary]) -> str:
    """The warnings about each arm's answers."""
    lines = [f"- {cell(one.name)}: {cell(said.sentence)}" for one in summaries for said in one.coherence]
    if not lines:
        return "No warning."
    return "Warnings only; no verdict depends on them.\n\n" + "\n".join(lines)


def passes(plan: SoakPlan, summaries: Sequence[ArmSummary]) -> str:
    """What became of each arm's supplementary passes."""
    if not plan.supplementary:
        return "The plan has none."
    names = [one.name for one in plan.supplementary]
    rows = []
    for one in summaries:
        states = dict(one.passes)
        rows.append((one.name, *(states.get(name, "not done") for name in names)))
    says = "With instruments, after all the others: no figure above is of them."
    return f"{table(('arm', *names), rows)}\n\n{says}"


def undone(plan: SoakPlan, summaries: Sequence[ArmSummary]) -> Iterator[str]:
    """A sentence for all that an arm lacks: scores, replays, supplementary passes."""
    for one in summaries:
        reasons = (one.not_run, None if one.no_score == one.not_run else one.no_score, *one.dropped)
        yield from (f"{one.name}: {reason}" for reason in reasons if reason is not None)
        states = dict(one.passes)
        for supplement in plan.supplementary:
            state = states.get(supplement.name, "not done")
            if state != "done":
                yield f"{one.name}: supplementary pass {supplement.name}: {state}"
