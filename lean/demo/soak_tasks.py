"""Make the soak's own data for the demo model: scored tasks and conversations, from text it never saw.

    python -m lean.demo.soak_tasks

`soak_text.txt` was written for this, pages of programs that do not exist, after the models were trained. A
task is a passage cut off before one to three words; the demo's own greedy answers select: mostly words it
gets right, by a margin over its second choice that rounding does not close and damaged weights do, and a few
that it gets wrong. So the tasks notice that a model changed; they say nothing about what it is able to do.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Encoding, Tokenizer

from lean.demo import CHECKPOINT_DIR, DEMO_DIR
from lean.demo.hf_files import load_checkpoint
from lean.demo.model import Qwen3

TEXT = DEMO_DIR / "soak_text.txt"
DATA_DIR = DEMO_DIR.parents[1] / "profiles" / "soak" / "data"
PASSAGE = 224  # tokens at most
CONTEXT = 24  # tokens at least before an answer
RIGHT, WRONG = 47, 3
LEAST_MARGIN, MOST_MARGIN = 0.12, 0.5  # logits, first choice over second; see docs/soak.md
WRONG_MARGIN = 0.6  # so that the wrong ones stay wrong
APART = 6  # tokens between two tasks of one passage
WORDS = re.compile(r"(?<= )[A-Za-z]{2,}(?: [A-Za-z]{2,}){0,2}(?![\w'=/(-])")
ANSWER_TOKENS = 3
UNIT = 28  # tokens at least in a unit of a conversation
# Of each conversation, how many units each prompt takes; one unit between two prompts is the answer.
SHAPES = (
    *((1, 1, 2), (4, 1), (1, 2, 1, 1), (8, 3), (2, 1, 3), (1, 1, 1, 1, 1)),
    *((6, 1, 2), (1, 4), (3, 2, 1, 1), (2, 2), (10, 3), (1, 1, 1)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Words of a passage that could be asked for. `margin` is the least over the tokens that decide."""

    passage: int
    token: int  # the first of the answer
    prompt: str
    answer: str
    right: bool
    margin: float


def passages(text: str, tokenizer: Tokenizer) -> list[str]:
    """The pages in runs of whole paragraphs, each of at most `PASSAGE` tokens unless it is one paragraph."""
    found: list[str] = []
    for page in re.split(r"(?m)^(?=NAME$)", text):
        held: list[str] = []
        for paragraph in page.strip().split("\n\n"):
            if held and len(tokenizer.encode("\n\n".join([*held, paragraph])).ids) > PASSAGE:
                found.append("\n\n".join(held))
                held = []
            held.append(paragraph)
        found.append("\n\n".join(held))
    return [passage for passage in found if passage]


@torch.inference_mode()
def candidates(passage: int, text: str, model: Qwen3, tokenizer: Tokenizer) -> Iterator[Candidate]:
    """Every run of one to three words that the text before it mentions, with what the model makes of it."""
    encoding = tokenizer.encode(text)
    logits = model(torch.tensor([encoding.ids]))[0].float()  # [S, V]
    values, choices = (part.tolist() for part in logits.topk(2))  # each [S, 2]; row i predicts token i + 1
    for start, end in _spans(text):
        place = _tokens_of(encoding, start - 1, end)  # an answer's first token has the blank in it
        if place is None or place[0] < CONTEXT:
            continue
        first, last = place
        prompt, answer = text[: start - 1], text[start:end]
        known = any(len(word) >= 4 and re.search(rf"\b{word}\b", prompt) for word in answer.split())
        if not known or tokenizer.encode(prompt).ids != encoding.ids[:first]:
            continue
        rows = range(first - 1, last)
        right = [choices[row][0] for row in rows] == encoding.ids[first : last + 1]
        margins = [values[row][0] - values[row][1] for row in rows]
        ends = [_ends_word(tokenizer, choice) for choice in choices[last]]
        if right and not ends[0]:
            continue  # it would go on with a longer word
        if right and not ends[1]:
            margins.append(values[last][0] - values[last][1])
        margin = min(margins) if right else margins[0]
        if right or choices[first - 1][0] != encoding.ids[first]:
            yield Candidate(
                passage=passage, token=first, prompt=prompt, answer=answer, right=right, margin=margin
            )


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of one, two and three words, where the last is a whole word."""
    for start in (match.start() for match in re.finditer(r"(?<= )(?=[A-Za-z])", text)):
        run = WORDS.match(text, start)
        if run is not None:
            ends = [start + blank.start() for blank in re.finditer(" |$", run.group())]
            yield from ((start, end) for end in ends)


def _tokens_of(encoding: Encoding, start: int, end: int) -> tuple[int, int] | None:
    """First and last token of these characters, when they are whole tokens and not too many."""
    starts = {offsets[0]: index for index, offsets in enumerate(encoding.offsets)}
    ends = {offsets[1]: index for index, offsets in enumerate(encoding.offsets)}
    if start not in starts or end not in ends or ends[end] - starts[start] >= ANSWER_TOKENS:
        return None
    return starts[start], ends[end]


def _ends_word(tokenizer: Tokenizer, token: int) -> bool:
    return re.match(r"\w", tokenizer.decode([token], skip_special_tokens=False)) is None


def select(found: list[Candidate]) -> list[Candidate]:
    """The tasks in the text's order: least margins first, apart from each other, no answer three times."""
    chosen: list[Candidate] = []
    for right, count, least, most in (
        (True, RIGHT, LEAST_MARGIN, MOST_MARGIN),
        (False, WRONG, WRONG_MARGIN, float("inf")),
    ):
        fit = [one for one in found if one.right == right and least <= one.margin <= most]
        taken = 0
        for one in sorted(fit, key=lambda one: (one.margin, one.passage, one.token)):
            apart = all(o.passage != one.passage or abs(o.token - one.token) >= APART for o in chosen)
            if taken < count and apart and [o.answer for o in chosen].count(one.answer) < 2:
                chosen.append(one)
                taken += 1
        if taken < count:
            raise SystemExit(f"{taken} of {count} tasks: widen the margins, or write more text")
    return sorted(chosen, key=lambda one: (one.passage, one.token))


def units(text: str, tokenizer: Tokenizer) -> list[str]:
    """The text's paragraphs, short ones joined to what follows them until there are `UNIT` tokens."""
    found: list[str] = []
    held: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        held.append(paragraph)
        if len(tokenizer.encode("\n\n".join(held)).ids) >= UNIT:
            found.append("\n\n".join(held))
            held = []
    return found


def conversations(text: str, tokenizer: Tokenizer) -> list[dict[str, object]]:
    """One after another from the text: prompts of as many units as `SHAPES` says, each with its answer."""
    rest = iter(units(text, tokenizer))
    return [
        {
            "id": f"demo-{number:02}",
            "turns": [
                {"prompt": "\n\n".join(next(rest) for _ in range(size)), "answer": next(rest)}
                for size in shape
            ],
        }
        for number, shape in enumerate(SHAPES, start=1)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=DATA_DIR, help="folder for the two files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(CHECKPOINT_DIR)
    tokenizer = Tokenizer.from_file(str(CHECKPOINT_DIR / "tokenizer.json"))
    text = TEXT.read_text(encoding="utf-8")
    found = [
        candidate
        for number, passage in enumerate(passages(text, tokenizer))
        for candidate in candidates(number, passage, model, tokenizer)
    ]
    tasks = select(found)
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, object]] = [
        {"id": f"demo-{number:02}", "prompt": task.prompt, "answer": task.answer}
        for number, task in enumerate(tasks, start=1)
    ]
    _write(arguments.out / "demo-tasks.jsonl", lines)
    _write(arguments.out / "demo-conversations.jsonl", conversations(text, tokenizer))
    margins = sorted(task.margin for task in tasks if task.right)
    wrong = [number for number, task in enumerate(tasks, start=1) if not task.right]
    print(f"{len(found)} candidates, {sum(one.right for one in found)} of them right")
    print(
        f"{RIGHT} right by {margins[0]:.3f} to {margins[-1]:.3f}, the middle {margins[RIGHT // 2]:.3f}; "
        f"wrong: {wrong}"
    )


def _write(file: Path, lines: list[dict[str, object]]) -> None:
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    file.write_text(content, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
