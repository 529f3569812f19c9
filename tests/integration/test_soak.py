"""The plan `quick` on the embedded host: real engines, real damage, verdicts, and the way home."""

from __future__ import annotations

import json
import shutil

import pytest

pytestmark = [
    pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client"),
]


def test_a_soak_that_is_not_there_and_a_wrong_plan_are_told_so(checkout, demo) -> None:
    none = checkout.invoke("remote.soak", "--show")
    assert none.code == 6 and "no soak 'quick'" in none.stderr
    wrong = checkout.invoke("remote.soak", "--plan", "slow")
    assert wrong.code == 2 and "known: quick, split_k, split_k_short, split_k_times" in wrong.stderr
    assert checkout.invoke("remote.soak", "--force").code == 1


def test_an_option_that_a_plan_says_as_one_text_is_named(checkout, demo) -> None:
    file = checkout.path / "profiles/soak/quick.yaml"
    plan = file.read_text()
    file.write_text(plan.replace("split_k: 4", 'split_k: "1,2,4,8"'))
    try:
        outcome = checkout.invoke("remote.soak")
    finally:
        file.write_text(plan)
    assert outcome.code == 2 and "arms[2].split_k: expected int, got '1,2,4,8'" in outcome.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_plan_quick_ends_in_verdicts_with_the_damaged_arm_caught(checkout, demo) -> None:
    outcome = checkout.invoke("remote.soak", "--json", timeout=800)
    document = json.loads(outcome.stdout)
    assert document["complete"], outcome.stderr
    found = {one["arm"]: one for one in document["verdicts"]}
    assert found["whole"]["verdict"] == "baseline"
    assert found["damaged"]["verdict"] == "investigate" and "score" in found["damaged"]["rule"]
    scores = {one["name"]: one["score"] for one in document["summaries"]}
    assert scores["whole"] == scores["twin"] == scores["split4"] == 47 > scores["damaged"] + 2
    # a busy machine may flag the twin; then the verb says that nothing can be believed
    assert outcome.code == 0 or (outcome.code == 7 and "too unsteady" in document["error"]["message"])
    (folder,) = (checkout.path / "results/v1/loopback/soak").iterdir()
    assert {"report.md", "soak.json", "rows.jsonl.gz", "journal.jsonl", "SHA256SUMS", "soak.png"} <= {
        file.name for file in folder.iterdir()
    }
    standing = checkout.invoke("remote.soak", "--show", "--json").document
    assert standing["finished"] and all(
        done["replays"] == done["of"] for arm in standing["phases"].values() for done in arm.values()
    )
    assert checkout.invoke("results.list", "--json").document["broken"] == []
