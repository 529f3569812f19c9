"""Answers that do not read like answers are warned of, and where an arm leaves the baseline's text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lean.soak.coherence import CoherenceWarning, coherence
from lean.soak.rows import ArmRows, Row

MakeArm = Callable[..., ArmRows]
MakeRow = Callable[..., Row]


def answering(make_arm: MakeArm, make_row: MakeRow, *texts: str, name: str = "arm") -> ArmRows:
    """An arm with one replay of conversations and these answers."""
    rows = tuple(make_row(f"c{i}", (20_000,), text=text) for i, text in enumerate(texts))
    return make_arm(name, quality=None, conversations=(rows,), long_decode=(), concurrent=())


def found(arm: ArmRows, baseline: ArmRows | None = None) -> dict[str, CoherenceWarning]:
    return {warning.check: warning for warning in coherence(arm, baseline)}


def test_plain_answers_give_no_warning(make_arm: MakeArm) -> None:
    assert coherence(make_arm("arm"), make_arm("base", seed=3)) == ()


def test_replacement_characters_are_counted(make_arm: MakeArm, make_row: MakeRow) -> None:
    warnings = found(answering(make_arm, make_row, "fine", "caf\ufffd", "\ufffd\ufffd"))
    assert list(warnings) == ["replacement characters"]
    assert warnings["replacement characters"].sentence == (
        "2 of 3 answers hold U+FFFD, which stands for bytes that are no UTF-8 "
        "(first: conversations, replay 1, c1 turn 0)"
    )


def test_a_loop_of_words_repeats_its_4_grams_and_has_few_trigrams(
    make_arm: MakeArm, make_row: MakeRow
) -> None:
    loop = "and the lake and the sea " * 8
    fair = "one two three four five six seven one two three four five six"  # 4 of 10 come again
    warnings = found(answering(make_arm, make_row, fair, loop, "too short"))
    assert list(warnings) == ["repeated 4-grams", "few trigrams"]
    assert [warning.rows for warning in warnings.values()] == [1, 1]
    assert "c1 turn 0" in warnings["few trigrams"].place


def test_text_without_spaces_is_read_by_its_characters(make_arm: MakeArm, make_row: MakeRow) -> None:
    assert list(found(answering(make_arm, make_row, "!" * 40))) == ["repeated 4-grams", "few trigrams"]
    assert (
        found(answering(make_arm, make_row, "湖の水は冷たく澄んでいて底の石まで見えるので夏は人が多い")) == {}
    )


def test_divergence_is_placed_where_it_comes_first(make_arm: MakeArm, make_row: MakeRow) -> None:
    base = answering(make_arm, make_row, "the lake is deep", "it rains here often", "no more", name="base")
    arm = answering(make_arm, make_row, "the lake is wide", "it rained here often", "no more")
    warning = found(arm, base)["diverges"]
    assert (warning.rows, warning.of, warning.words, warning.characters) == (2, 3, 1, 7)
    assert warning.sentence == (
        "2 of 3 answers differ from the baseline arm's, at the earliest after 1 word, 7 characters "
        "(conversations, replay 1, c1 turn 0)"
    )


def test_an_answer_that_only_ends_earlier_diverges_at_its_end(make_arm: MakeArm, make_row: MakeRow) -> None:
    base = answering(make_arm, make_row, "the lake is deep", name="base")
    warning = found(answering(make_arm, make_row, "the lake"), base)["diverges"]
    assert (warning.words, warning.characters) == (2, 8)


def test_answers_to_other_prompts_are_not_compared(make_arm: MakeArm, make_row: MakeRow) -> None:
    base = answering(make_arm, make_row, "the lake is deep", "it rains", name="base")
    arm = answering(make_arm, make_row, "something else", "it rains")
    rows = arm.conversations[0]
    other = dataclasses.replace(rows[0], prompt_sha256="cd" * 32)
    warnings = found(dataclasses.replace(arm, conversations=((other, rows[1]),)), base)
    assert list(warnings) == ["other prompts"]
    assert (warnings["other prompts"].rows, warnings["other prompts"].of) == (1, 2)


def test_an_arm_that_answers_a_prompt_in_two_ways_is_unsteady(make_arm: MakeArm, make_row: MakeRow) -> None:
    first = answering(make_arm, make_row, "the lake", "it rains").conversations[0]
    again = (first[0], dataclasses.replace(first[1], text="it snows"))
    warnings = found(make_arm("arm", quality=None, conversations=(first, again)))
    assert warnings["unsteady"].place == "conversations, replay 2, c1 turn 0"


def test_failed_requests_have_no_answer_to_warn_of(make_arm: MakeArm, make_row: MakeRow) -> None:
    arm = answering(make_arm, make_row, "\ufffd")
    failed = dataclasses.replace(arm.conversations[0][0], error="refused")
    assert coherence(dataclasses.replace(arm, conversations=((failed,),)), None) == ()
