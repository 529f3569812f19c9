"""The page and the figures of a soak, from its summaries alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lean.bench.record import Release
from lean.contracts.soak import Arm, SoakPlan, SupplementaryPass
from lean.soak.plots import draw_soak
from lean.soak.report import CAPTIONS, SoakFacts, soak_report
from lean.soak.rows import ArmRows
from lean.soak.summary import ArmSummary, summarize
from lean.soak.verdict import judge

MakeArm = Callable[..., ArmRows]
MakePlan = Callable[..., SoakPlan]
FACTS = SoakFacts(
    host="spark",
    contract="qwen3_4b",
    release=Release(id="r", git_sha="ab" * 20, dirty=False, diff_sha256=None),
    plan_sha256="cd" * 32,
    started_utc="2026-11-22T01:00:00.000+00:00",
    ended_utc="2026-11-23T09:00:00.000+00:00",
    label="exploratory",
    label_reasons=("not the default: split_k 4",),
    command=("invoke", "remote.soak", "--host", "spark", "--plan", "made_up"),
)


def page(plan: SoakPlan, *arms: ArmRows, facts: SoakFacts = FACTS, figures: tuple[str, ...] = ()) -> str:
    summaries = summarize(plan, arms)
    return soak_report(plan, facts, summaries, judge(summaries, plan.baseline, plan.thresholds), figures)


def test_a_whole_soak_reads_from_its_verdict_down_to_how_to_run_it_again(
    make_plan: MakePlan, make_arm: MakeArm
) -> None:
    plan = make_plan("wo1", arms=(Arm(name="wo4", split_k=4),))
    said = (("split_k", "4"), ("slots", "2"))
    found = page(
        plan, make_arm("wo1"), make_arm("wo4", seed=1, slower=-0.08, effective=said), figures=tuple(CAPTIONS)
    )
    assert found.startswith("# Soak made_up on spark: wo4 is the default candidate\n\narms of a test\n")
    assert "The soak is **complete**. Label: **exploratory**, because not the default: split_k 4." in found
    assert "| wo1 | **baseline** | the baseline |" in found
    assert "| wo4 | **default candidate** | wall gain | its wall is 6." in found
    assert "| wo4 | engine leanserve, split_k 4 | split_k 4, slots 2 |" in found
    assert "## How the answers read\n\nNo warning." in found
    assert "Nothing: every arm has every phase, and every replay counts." in found
    assert "The plan has none." in found
    assert "(soak.png)" in found and "(long_decode.png)" in found
    assert found.endswith("and all numbers here are made of those.\n")
    assert f"git checkout {'ab' * 20}\ninvoke remote.soak --host spark --plan made_up\n" in found
    heads = [line for line in found.splitlines() if line.startswith("## ")]
    assert heads == [
        "## Verdicts",
        "## The arms in numbers",
        "## Settings, asked and read back",
        "## How the answers read",
        "## Supplementary passes",
        "## What is missing or does not count",
        "## The rules",
        "## What ran",
        "## Run it again",
    ]


def test_the_rules_are_on_the_page_with_the_plans_own_figures(make_plan: MakePlan, make_arm: MakeArm) -> None:
    found = page(make_plan("wo1", "wo4"), make_arm("wo1"), make_arm("wo4", seed=1))
    assert "2. a score under 30 of 50, or more than 2 below the baseline's: **investigate**" in found
    assert "4. a wall longer by more than 2 % and the baseline noise: **investigate**" in found
    assert "5. a wall shorter by 5 % or more" in found
    assert "# Soak made_up on spark: no arm should become the default\n" in found


def test_what_is_missing_is_said_and_makes_the_soak_incomplete(
    make_plan: MakePlan, make_arm: MakeArm
) -> None:
    plan = make_plan("wo1", "wo4", "wo8", supplementary=(SupplementaryPass(name="regions", regions=True),))
    done = (("regions", "done"),)
    base = make_arm("wo1", passes=done)
    short = dataclasses.replace(
        base,
        name="wo4",
        conversations=base.conversations[:4],
        passes=(("regions", "its file did not come"),),
    )
    absent = make_arm("wo8", quality=None, replays=0, not_run="not ready after 1200 s")
    facts = dataclasses.replace(FACTS, ended_utc=None, incomplete=("stopped by the user in wo8",))
    found = page(plan, base, short, absent, facts=facts)
    assert "The soak is **incomplete**" in found
    assert found.split("\n")[0].endswith("no arm should become the default, 2 to look into")
    assert "| wo4 | **insufficient** | too few replays | 4 of 5 replays count |" in found
    missing = found.split("## What is missing or does not count\n\n")[1].split("\n\n")[0]
    assert missing.splitlines() == [
        "- stopped by the user in wo8",
        "- wo4: supplementary pass regions: its file did not come",
        "- wo8: not ready after 1200 s",
        "- wo8: supplementary pass regions: not done",
    ]
    assert "| wo8 | - | 0 | - | - | - | - | - | - | - |" in found


def test_an_unsound_baseline_leaves_nothing_judged(make_plan: MakePlan, make_arm: MakeArm) -> None:
    found = page(make_plan("wo1", "wo4"), make_arm("wo1", replays=2), make_arm("wo4"))
    assert found.startswith("# Soak made_up on spark: nothing could be judged\n")
    assert (
        "| wo4 | **not judged** | the baseline | the baseline wo1 cannot be judged against: 2 of 5" in found
    )


@pytest.mark.parametrize(("right", "caught"), [(41, True), (48, False)])
def test_a_control_that_went_unseen_stands_out(
    make_plan: MakePlan, make_arm: MakeArm, right: int, caught: bool
) -> None:
    plan = make_plan("wo1", arms=(Arm(name="worse", control="weights"),))
    found = page(plan, make_arm("wo1"), make_arm("worse", seed=1, right=right))
    assert ("| weights perturbed | investigate | score below the baseline | yes |" in found) is caught
    assert ("**Damage went unseen" in found) is not caught
    assert "to look into" not in found.split("\n")[0]  # an arm that is damaged on purpose is no finding


def test_a_setting_that_was_not_applied_stands_out(make_plan: MakePlan, make_arm: MakeArm) -> None:
    plan = make_plan("wo1", arms=(Arm(name="wo4", split_k=4),))
    found = page(plan, make_arm("wo1"), make_arm("wo4", effective=(("split_k", "1"),)))
    assert "split_k **1**" in found and "**wo4 did not run as asked (split_k)" in found


def test_what_an_answer_or_an_error_says_cannot_break_the_page(
    make_plan: MakePlan, make_arm: MakeArm
) -> None:
    hostile = make_arm("wo4", quality=None, replays=0, not_run="a | b\n# <script>\x1b[31m")
    found = page(make_plan("wo1", "wo4"), make_arm("wo1"), hostile)
    assert "a \\| b # &lt;script>?[31m" in found
    assert "\x1b" not in found and "\n# &lt;" not in found


def test_the_same_summaries_give_the_same_page_and_figures(
    make_plan: MakePlan, make_arm: MakeArm, tmp_path: Path
) -> None:
    names = ("base", *(f"arm-with-a-name-as-long-as-allowed-{i}" for i in range(7)))
    plan = make_plan(*names)
    arms = [make_arm(name, seed=i, slower=-0.01 * i) for i, name in enumerate(names)]
    assert page(plan, *arms) == page(plan, *arms)
    summaries = summarize(plan, arms)
    pictures = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        assert draw_soak(plan, summaries, folder) == tuple(CAPTIONS)
        pictures.append([(folder / name).read_bytes() for name in CAPTIONS])
        for name in CAPTIONS:
            with Image.open(folder / name) as picture:
                assert picture.width >= 1800 and picture.height >= 600
    assert pictures[0] == pictures[1]


def test_arms_without_numbers_have_a_line_and_no_arm_with_any_no_figure(
    make_plan: MakePlan, make_arm: MakeArm, tmp_path: Path
) -> None:
    plan = make_plan("base", "other", quality=None)
    nothing = [ArmSummary(name="base"), ArmSummary(name="other")]
    assert draw_soak(plan, nothing, tmp_path) == () and list(tmp_path.iterdir()) == []
    one = summarize(plan, (make_arm("base", replays=1, long_decode=()),))
    assert draw_soak(plan, one, tmp_path) == ("soak.png",)
