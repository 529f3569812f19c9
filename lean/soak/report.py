"""report.md of a soak, from plan, facts, summaries and verdicts alone: the same ones give the same bytes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lean.bench.record import Release
from lean.contracts.soak import Control, SoakPlan
from lean.markdown import cell, plain, table
from lean.soak.report_arms import coherence, numbers, passes, settings, undone
from lean.soak.summary import ArmSummary
from lean.soak.verdict import DOUBTFUL, Verdict, baseline_noise, caught, limit, percent

CAPTIONS: Mapping[str, str] = {
    "soak.png": "wall of each replay with mean and interval, quantiles of TPOT, and score, by arm",
    "long_decode.png": "TPOT over the position in a long answer, by arm",
}
_DAMAGE: Mapping[Control, str] = {
    "weights": "weights perturbed",
    "slower": "every token 6 % slower",
    "cut": "every tenth answer cut",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakFacts:
    """What the page says beside numbers. `command`: what the user called, the same again resumes.

    `ended_utc`: None while parts are missing; `incomplete`: a sentence for each of them that no arm's summary
    tells. `label_reasons`: why the label is no better.
    """

    host: str
    contract: str
    release: Release
    plan_sha256: str
    started_utc: str
    ended_utc: str | None
    label: str
    label_reasons: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


def soak_report(
    plan: SoakPlan,
    facts: SoakFacts,
    summaries: Sequence[ArmSummary],
    verdicts: Sequence[Verdict],
    figures: Sequence[str] = (),
) -> str:
    """The page. `figures`: names of those that lie beside it, of `CAPTIONS`."""
    missing = [*facts.incomplete, *undone(plan, summaries)]
    parts = [
        f"# Soak {cell(plan.id)} on {cell(facts.host)}: {headline(verdicts, summaries)}",
        cell(plan.about),
        _label(facts, summaries),
        "## Verdicts\n\n" + table(("arm", "verdict", "rule", "why"), map(_verdict, verdicts)),
        *_also(verdicts),
        *_controls(summaries, verdicts),
        "## The arms in numbers\n\n" + numbers(summaries),
        *(f"![{CAPTIONS[name]}]({name})" for name in figures),
        "## Settings, asked and read back\n\n" + settings(summaries),
        "## How the answers read\n\n" + coherence(summaries),
        "## Supplementary passes\n\n" + passes(plan, summaries),
        "## What is missing or does not count\n\n" + _list(missing),
        "## The rules\n\n" + _rules(plan, summaries),
        "## What ran\n\n" + table(("", ""), _ran(plan, facts)),
        _again(facts),
    ]
    return "\n\n".join(parts) + "\n"


def headline(verdicts: Sequence[Verdict], summaries: Sequence[ArmSummary]) -> str:
    """What came out, in a few words; arms damaged on purpose are not counted."""
    damaged = {one.name for one in summaries if one.control is not None}
    found = [one for one in verdicts if one.arm not in damaged]
    if any(one.verdict == "not judged" for one in verdicts):
        return "nothing could be judged"
    chosen = next((one.arm for one in found if one.verdict == "default candidate"), None)
    says = f"{chosen} is the default candidate" if chosen else "no arm should become the default"
    doubtful = sum(one.verdict in DOUBTFUL for one in found)
    return says + (f", {doubtful} to look into" if doubtful else "")


def _label(facts: SoakFacts, summaries: Sequence[ArmSummary]) -> str:
    """Complete is a soak whose every arm ran to its end, whatever came of it."""
    parts = facts.ended_utc is None or facts.incomplete or any(one.not_run for one in summaries)
    state = "incomplete" if parts else "complete"
    reasons = f", because {'; '.join(map(cell, facts.label_reasons))}" if facts.label_reasons else ""
    return f"The soak is **{state}**. Label: **{cell(facts.label)}**{reasons}."


def _verdict(one: Verdict) -> tuple[str, ...]:
    return one.arm, f"**{one.verdict}**", one.rule, one.why


def _also(verdicts: Sequence[Verdict]) -> Iterator[str]:
    lines = [f"- {cell(one.arm)}: {cell(other)}" for one in verdicts for other in one.also]
    if lines:
        yield "Later rules that would have fired as well:\n\n" + "\n".join(lines)


def _controls(summaries: Sequence[ArmSummary], verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Whether the rules caught the arms that were damaged on purpose: a table, and what it means."""
    by_arm = {one.arm: one for one in verdicts}
    damaged = {one.name: (_DAMAGE[one.control], caught(one, by_arm[one.name]))
               for one in summaries if one.control is not None}  # fmt: skip
    if not damaged:
        return
    words = {True: "yes", False: "**NO**", None: "not judged"}
    rows = [
        (name, how, by_arm[name].verdict, by_arm[name].rule, words[seen])
        for name, (how, seen) in damaged.items()
    ]
    found_out = {seen for _, seen in damaged.values()}
    if found_out == {True}:
        says = "Each was caught by the rule for its damage, so the rules see damage of this kind and size."
    elif False in found_out:
        says = "**Damage went unseen: what these rules say of the other arms cannot be relied on.**"
    else:
        says = "**Not every one was judged: whether the rules see such damage here is not known.**"
    found = table(("arm", "damage", "verdict", "rule", "caught"), rows)
    yield f"### Arms damaged on purpose\n\n{found}\n\n{says}"


def _rules(plan: SoakPlan, summaries: Sequence[ArmSummary]) -> str:
    t = plan.thresholds
    wall = next((one.wall for one in summaries if one.name == plan.baseline), None)
    noise = "not known" if wall is None or wall.sd is None else percent(baseline_noise(wall))
    of = f" of {plan.quality.tasks}" if plan.quality else ""
    return (
        f"Fixed before the soak; the first that applies decides. The baseline is {cell(plan.baseline)}.\n\n"
        "1. no score: **no score**\n"
        f"2. a score under {t.floor}{of}, or more than {t.drop} below the baseline's: **investigate**\n"
        f"3. fewer than {t.replays} replays that count: **insufficient**\n"
        f"4. a wall longer by more than {limit(t.regression)} and the baseline noise: **investigate**\n"
        f"5. a wall shorter by {limit(t.gain)} or more and by more than the noise, and a p95 of TPOT of no "
        "more than the baseline's plus its deviation over replays: **default candidate**; of several the "
        "better p95\n"
        "6. anything else: **keep opt-in**\n\n"
        f"The baseline noise is **{noise}**: t(99 %, n - 1) · sd · √(2/n) / mean of its n walls, Fisher's "
        "least significant difference at 1 %. An unchanged arm whose walls vary as these is slower by more "
        "once in 200 soaks, and a slowdown of less cannot be told from chance here."
    )


def _ran(plan: SoakPlan, facts: SoakFacts) -> Iterator[tuple[str, str]]:
    r = facts.release
    dirty = f", with an uncommitted diff, sha256 {r.diff_sha256}" if r.dirty else ""
    yield "plan", f"{plan.id}, sha256 {facts.plan_sha256}, seed {plan.seed}"
    yield "contract", facts.contract
    yield "host", facts.host
    yield "code", f"{r.git_sha}{dirty}"
    yield "started, ended", f"{facts.started_utc}, {facts.ended_utc or 'not ended'}"
    if plan.quality is not None:
        q = plan.quality
        yield "A, quality", f"{q.tasks} tasks of {q.data.file} ({q.data.sha256}), {q.new_tokens} tokens each"
    c = plan.conversations
    yield (
        "B, conversations",
        f"{c.conversations} of {c.data.file} ({c.data.sha256}), prompts of at most {c.prompt_tokens} tokens, "
        f"{c.new_tokens} new ones a turn, {c.replays} replays",
    )
    if plan.long_decode is not None:
        d = plan.long_decode
        shape = f"{d.prompt_tokens} tokens in, {d.new_tokens} out"
        yield "C, long decode", f"{shape}, {d.replays} replays"
    if plan.concurrent is not None:
        p = plan.concurrent
        shape = f"{p.prompt_tokens} tokens in, {p.new_tokens} out"
        yield "D, concurrent", f"{p.streams} streams, {shape}, {p.replays} replays"


def _again(facts: SoakFacts) -> str:
    checkout = f"git checkout {facts.release.git_sha}"
    if facts.release.dirty:
        checkout += f"   # plus an uncommitted diff, sha256 {facts.release.diff_sha256}"
    words = plain(" ".join(map(shlex.quote, facts.command)))
    return (
        f"## Run it again\n\n```\n{checkout}\n{words}\n```\n\n"
        "With `--resume` it does what is missing of one that was stopped. Every request's row lies beside "
        "this page, and all numbers here are made of those."
    )


def _list(lines: Sequence[str]) -> str:
    if not lines:
        return "Nothing: every arm has every phase, and every replay counts."
    return "\n".join(f"- {cell(line)}" for line in lines)
