"""Scored tasks: what is asked, what is right, and what the answer says.

`tasks` are JSON lines of our own. `gsm8k` are the lines of GSM8K ("Training Verifiers to Solve Math Word
Problems", 2021; github.com/openai/grade-school-math), asked without examples and graded on the last number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, assert_never

from lean.errors import ContractError
from lean.soak.data import bad_line, only_fields, read_objects, text_of

Format = Literal["tasks", "gsm8k"]

GSM8K_PROMPT = "Question: {question}\nAnswer:"
GSM8K_STOP = ("\nQuestion:",)  # a base model goes on with a question of its own
MAX_ID = 100
MAX_STOPS = 16
# A sign counts where no number stands before it, for "16-3" is two numbers. Commas are taken in threes.
NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z_.)])(?P<sign>-)(?=[$€£.0-9]))?[$€£]?"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
GOLD = re.compile(r"(?:^|\n)####[ ]*([^\n]+?)\s*\Z")


@dataclass(frozen=True, slots=True)
class Task:
    """One question. `answer` is what `grade` compares with; what follows a `stop` is no part of an answer."""

    id: str
    prompt: str
    answer: str
    stop: tuple[str, ...]


def read_tasks(file: Path, format: Format) -> tuple[Task, ...]:
    """The tasks of a file, in its order.

    Errors: `ContractError` naming the line that is no task, or that has the id or the question of another.
    """
    tasks: list[Task] = []
    lines: dict[str, int] = {}
    for number, document in read_objects(file):
        try:
            task = _task(document) if format == "tasks" else _gsm8k(document, number)
        except ValueError as error:
            raise bad_line(file, number, str(error)) from None
        for key in {f"id {task.id!r}", f"prompt {task.prompt!r}"}:
            if key in lines:
                raise bad_line(file, number, f"the {key[:60]} of line {lines[key]} again")
            lines[key] = number
        tasks.append(task)
    if not tasks:
        raise ContractError(f"{file}: no tasks")
    return tuple(tasks)


def grade(task: Task, text: str, format: Format) -> bool:
    """Whether an answer is right.

    `tasks`: the text up to the first stop, without blanks around it, begins with the answer and goes on with
    something that is neither part of its last word nor of its number. `gsm8k`: the last number before the
    first stop is the answer's, whatever its commas, currency, unit or zeros behind the point.
    """
    said = text[: min((at for stop in task.stop if (at := text.find(stop)) >= 0), default=len(text))]
    match format:
        case "tasks":
            return _begins_with(said.strip(), task.answer)
        case "gsm8k":
            numbers = list(numbers_of(said))
            return bool(numbers) and numbers[-1] == Decimal(task.answer)
        case _:
            assert_never(format)


def numbers_of(text: str) -> Iterator[Decimal]:
    """The numbers of a text, in its order."""
    for match in NUMBER.finditer(text.replace("−", "-")):
        value = Decimal(match["digits"].replace(",", ""))
        yield -value if match["sign"] else value


def _begins_with(text: str, answer: str) -> bool:
    end = r"(?!\w|[.,][0-9])" if re.search(r"[0-9]\Z", answer) else r"(?!\w)"
    return re.match(re.escape(answer) + (end if re.search(r"\w\Z", answer) else ""), text) is not None


def _task(document: dict[str, Any]) -> Task:
    only_fields(document, "id", "prompt", "answer", "stop")
    name, prompt, answer = (text_of(document, field) for field in ("id", "prompt", "answer"))
    stop = document.get("stop", [])
    if len(name) > MAX_ID or not name.isprintable():
        raise ValueError(f"id: expected at most {MAX_ID} printable characters, got {name[:40]!r}")
    if not isinstance(stop, list) or len(stop) > MAX_STOPS:
        raise ValueError(f"stop: expected a list of at most {MAX_STOPS} texts")
    if not all(isinstance(one, str) and one for one in stop):
        raise ValueError("stop: expected texts that are not empty")
    if answer != answer.strip():
        raise ValueError("answer: blanks around it could never be matched")
    hidden = next((one for one in stop if one in answer), None)
    if hidden is not None:
        raise ValueError(f"answer: holds the stop {hidden!r}, so nothing could be right")
    return Task(name, prompt, answer, tuple(stop))


def _gsm8k(document: dict[str, Any], number: int) -> Task:
    only_fields(document, "question", "answer")
    question, answer = text_of(document, "question"), text_of(document, "answer")
    found = GOLD.search(answer)
    gold = [] if found is None else list(numbers_of(found[1]))
    if len(gold) != 1:
        raise ValueError("answer: expected its last line to be '#### ' and one number")
    prompt = GSM8K_PROMPT.format(question=question.strip())
    return Task(f"gsm8k-{number}", prompt, str(gold[0]), GSM8K_STOP)
