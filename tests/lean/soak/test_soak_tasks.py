"""What a scored task is, and which answers to it are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lean.errors import ContractError
from lean.soak.tasks import Task, grade, numbers_of, read_tasks

TASK = {"id": "a", "prompt": "Two and two are", "answer": "four"}
SUM = {"question": "What are 2 and 2?", "answer": "2 and 2 are <<2+2=4>>4.\n#### 4"}


def file_of(folder: Path, *documents: dict[str, Any]) -> Path:
    file = folder / "tasks.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return file


def test_a_task_has_its_own_stops_or_none(tmp_path: Path) -> None:
    other = {"id": "b", "prompt": "More", "answer": "yes", "stop": ["\n"]}
    assert read_tasks(file_of(tmp_path, TASK, other), "tasks") == (
        Task("a", "Two and two are", "four", ()),
        Task("b", "More", "yes", ("\n",)),
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"answer": ""}, "answer: expected text"),
        ({"answer": " four"}, "answer: blanks"),
        ({"answer": 4}, "answer: expected text"),
        ({"prompt": " \n"}, "prompt: expected text"),
        ({"id": 7}, "id: expected text"),
        ({"id": "x" * 101}, "id: expected at most 100"),
        ({"id": "a\nb"}, "id: expected at most 100 printable"),
        ({"stop": "\n"}, "stop: expected a list"),
        ({"stop": ["\n"] * 17}, "stop: expected a list of at most 16"),
        ({"stop": [""]}, "stop: expected texts"),
        ({"stop": ["ou"]}, "answer: holds the stop 'ou'"),
        ({"anser": "four"}, "unknown field 'anser'; known: id, prompt, answer, stop"),
        ({"id": "first"}, "the id 'first' of line 1 again"),
        ({"prompt": "One and"}, "the prompt 'One and' of line 1 again"),
    ],
)
def test_a_line_that_is_no_task_is_named(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    first = {"id": "first", "prompt": "One and", "answer": "one"}
    with pytest.raises(ContractError, match=f"tasks.jsonl: line 2: {why}"):
        read_tasks(file_of(tmp_path, first, TASK | change), "tasks")


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("file", " file", True),
        ("file", "\n file, which is", True),
        ("file", " file-name", True),
        ("file", " files", False),
        ("file", " file_name", False),
        ("file", " File", False),
        ("file", " the file", False),
        ("file", "", False),
        ("the file", " the file.", True),
        ("the file", " the\nfile", False),
        ("3", " 3. The", True),
        ("3", " 3.5", False),
        ("3", " 3,000", False),
        ("3", " 31", False),
        ("a.b", " a.b", True),
        ("a.b", " axb", False),
        ("f()", " f()x", True),
    ],
)
def test_a_task_is_right_when_the_text_begins_with_the_answer_as_whole_words(
    answer: str, text: str, right: bool
) -> None:
    assert grade(Task("a", "p", answer, ()), text, "tasks") is right


def test_what_follows_the_first_stop_is_no_part_of_the_answer() -> None:
    task = Task("a", "p", "no", ("\n\n", "END"))
    assert grade(task, " noEND\n\n", "tasks") and not grade(task, "END no", "tasks")


def test_gsm8k_is_asked_without_examples_and_graded_on_the_last_number(tmp_path: Path) -> None:
    (task,) = read_tasks(file_of(tmp_path, SUM), "gsm8k")
    assert task == Task("gsm8k-1", "Question: What are 2 and 2?\nAnswer:", "4", ("\nQuestion:",))
    assert grade(task, " 2+2 is\n#### 4", "gsm8k")
    assert grade(task, " So it is $4.00 a week.\n\nQuestion: What are 3 and 3?", "gsm8k")
    assert not grade(task, " 4 of the 5.", "gsm8k")
    assert not grade(task, " four\nQuestion: 4", "gsm8k")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("$1,234.50 in all", ["1234.50"]),
        ("2,3 and 1,0000", ["2", "3", "1", "0"]),
        ("16-3 or 16 - 3", ["16", "3", "16", "3"]),
        ("= -3, (−4), -$5", ["-3", "-4", "-5"]),
        ("50% of 18km.", ["50", "18"]),
        ("none", []),
        ("x = .5", ["0.5"]),
    ],
)
def test_commas_signs_and_units_are_read_as_people_write_them(text: str, numbers: list[str]) -> None:
    assert list(map(str, numbers_of(text))) == numbers


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"answer": "4"}, "answer: expected its last line to be '#### ' and one number"),
        ({"answer": "#### four"}, "answer: expected its last line"),
        ({"answer": "#### 4 or 5"}, "answer: expected its last line"),
        ({"id": "x"}, "unknown field 'id'"),
        ({"question": SUM["question"]}, "the prompt 'Question: What are 2"),
    ],
)
def test_a_line_that_is_not_of_gsm8k_is_named(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    with pytest.raises(ContractError, match=f"line 2: {why}"):
        read_tasks(file_of(tmp_path, SUM, SUM | {"question": "And 1 and 1?"} | change), "gsm8k")


def test_the_answers_own_commas_are_read_too(tmp_path: Path) -> None:
    (task,) = read_tasks(file_of(tmp_path, SUM | {"answer": "#### 1,450"}), "gsm8k")
    assert task.answer == "1450" and grade(task, "1450.00", "gsm8k") and grade(task, "$1,450", "gsm8k")
