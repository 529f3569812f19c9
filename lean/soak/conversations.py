"""Conversations, replayed turn by turn: every prompt holds the file's own earlier answers, never a model's.

So each arm gets the same prompts, to the byte. `turns` are JSON lines of our own, for which prompts and
answers are joined by blank lines. `sharegpt` is ShareGPT's JSON, in which two people speak in plain words:
no chat template, since engines do not agree on how a prompt's special tokens are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lean.errors import ContractError
from lean.soak.data import bad_line, only_fields, read_objects, read_whole, text_of
from lean.strict_json import parse_json

Format = Literal["turns", "sharegpt"]

ASKED = "Human: {prompt}\n\nAssistant:"  # sharegpt: each turn, behind the earlier ones with their answers
ANSWERED = " {answer}\n\n"
PEOPLE = {"human", "user"}
MODELS = {"gpt", "chatgpt", "assistant", "bing", "bard"}
MAX_ID = 100


@dataclass(frozen=True, slots=True)
class Turn:
    """One request. `turn` counts from 1 within its conversation; `prompt` is the whole of it so far."""

    conversation: str
    turn: int
    prompt: str


@dataclass(frozen=True, slots=True)
class _Conversation:
    name: str
    prompts: tuple[str, ...]


def read_turns(
    file: Path,
    format: Format,
    *,
    count_tokens: Callable[[str], int],
    conversations: int,
    prompt_tokens: int,
) -> tuple[Turn, ...]:
    """The turns of the first `conversations` that have any of at most `prompt_tokens`, in the file's order.

    A conversation ends before its first longer prompt; one that is left without turns does not count.
    Errors: `ContractError` naming what cannot be used, or saying how many conversations there are.
    """
    turns: list[Turn] = []
    seen = kept = 0
    for conversation in _turns(file) if format == "turns" else _sharegpt(file):
        seen += 1
        before = len(turns)
        if kept < conversations:
            for number, prompt in enumerate(conversation.prompts, start=1):
                if count_tokens(prompt) > prompt_tokens:
                    break
                turns.append(Turn(conversation.name, number, prompt))
        kept += len(turns) > before
    if kept < conversations:
        raise ContractError(
            f"{file}: {kept} of its {seen} conversations have a prompt of at most {prompt_tokens} tokens, "
            f"and the plan asks for {conversations}; ask for fewer, or for longer prompts"
        )
    return tuple(turns)


def _turns(file: Path) -> Iterator[_Conversation]:
    lines: dict[str, int] = {}
    for number, document in read_objects(file):
        try:
            only_fields(document, "id", "turns")
            name = _name(document)
            if name in lines:
                raise ValueError(f"the id {name!r} of line {lines[name]} again")
            prompts = tuple(_joined(document.get("turns")))
        except ValueError as error:
            raise bad_line(file, number, str(error)) from None
        lines[name] = number
        yield _Conversation(name, prompts)


def _joined(turns: Any) -> Iterator[str]:
    if not isinstance(turns, list) or not turns:
        raise ValueError("turns: expected a list of prompts with their answers")
    said: list[str] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise ValueError(f"turn {number}: expected a prompt and its answer")
        try:
            only_fields(turn, "prompt", "answer")
            said.append(text_of(turn, "prompt"))
            yield "\n\n".join(said)
            said.append(text_of(turn, "answer"))
        except ValueError as error:
            raise ValueError(f"turn {number}: {error}") from None


def _sharegpt(file: Path) -> Iterator[_Conversation]:
    """Those with something to ask; of an id that stands there twice, the first."""
    try:
        documents = parse_json(read_whole(file))
    except ValueError as error:
        raise ContractError(f"{file}: {error}") from None
    if not isinstance(documents, list):
        raise ContractError(f"{file}: expected ShareGPT's list of conversations")
    names = set()
    for number, document in enumerate(documents, start=1):
        try:
            if not isinstance(document, dict):
                raise ValueError("expected an object")
            name = _name(document)
            prompts = tuple(_spoken(document.get("conversations")))
        except ValueError as error:
            raise ContractError(f"{file}: conversation {number}: {error}") from None
        if prompts and name not in names:
            names.add(name)
            yield _Conversation(name, prompts)


def _spoken(messages: Any) -> Iterator[str]:
    """Prompts from the first person's message on, while person and model take turns and say something."""
    if not isinstance(messages, list):
        raise ValueError("conversations: expected a list of messages")
    said, asks, begun = "", True, False
    for number, message in enumerate(messages, start=1):
        speaker, text = (message.get(key) if isinstance(message, dict) else None for key in ("from", "value"))
        if not isinstance(speaker, str) or not isinstance(text, str):
            raise ValueError(f"message {number}: expected 'from' and 'value'")
        if not begun and speaker not in PEOPLE:
            continue
        begun = True
        if speaker not in (PEOPLE if asks else MODELS) or not text.strip():
            return
        said += ASKED.format(prompt=text.strip()) if asks else ANSWERED.format(answer=text.strip())
        if asks:
            yield said
        asks = not asks


def _name(document: dict[str, Any]) -> str:
    name = text_of(document, "id")
    if len(name) > MAX_ID or not name.isprintable():
        raise ValueError(f"id: expected at most {MAX_ID} printable characters, got {name[:40]!r}")
    return name
