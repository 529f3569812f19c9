"""Conversations: the same prompts for every arm, filtered by length before they are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lean.errors import ContractError
from lean.soak.conversations import Format, Turn, read_turns


def words(text: str) -> int:
    return len(text.split())


def file_of(folder: Path, *documents: Any) -> Path:
    file = folder / "turns.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return file


def told(name: str, *turns: tuple[str, str]) -> dict[str, Any]:
    return {"id": name, "turns": [{"prompt": prompt, "answer": answer} for prompt, answer in turns]}


def shared(folder: Path, *conversations: dict[str, Any]) -> Path:
    (folder / "shared.json").write_text(json.dumps(conversations))
    return folder / "shared.json"


def spoken(name: str, *messages: tuple[str, str]) -> dict[str, Any]:
    said = [{"from": speaker, "value": text, "markdown": None} for speaker, text in messages]
    return {"id": name, "conversations": said}


def read(
    file: Path, format: Format = "turns", *, conversations: int = 1, prompt_tokens: int = 100
) -> tuple[Turn, ...]:
    return read_turns(
        file, format, count_tokens=words, conversations=conversations, prompt_tokens=prompt_tokens
    )


def test_a_prompt_holds_all_that_was_said_with_the_files_own_answers(tmp_path: Path) -> None:
    file = file_of(tmp_path, told("a", ("one", "two"), ("three", "four")), told("b", ("five", "six")))
    assert read(file, conversations=2) == (
        Turn("a", 1, "one"),
        Turn("a", 2, "one\n\ntwo\n\nthree"),
        Turn("b", 1, "five"),
    )


def test_too_long_prompts_are_left_out_before_conversations_are_counted(tmp_path: Path) -> None:
    file = file_of(
        tmp_path,
        told("long", ("one two three four", "x"), ("y", "z")),
        told("begins-short", ("one", "two"), ("three four", "five")),
        told("short", ("one two", "x")),
    )
    turns = read(file, conversations=2, prompt_tokens=3)
    assert [(turn.conversation, turn.turn) for turn in turns] == [("begins-short", 1), ("short", 1)]


def test_fewer_conversations_than_asked_for_is_an_error_that_says_how_many(tmp_path: Path) -> None:
    file = file_of(tmp_path, told("a", ("one two", "x")), told("b", ("one", "x")))
    with pytest.raises(ContractError, match=r"1 of its 2 conversations .* at most 1 tokens, and .* for 2"):
        read(file, conversations=2, prompt_tokens=1)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"id": "b"}, "turns: expected a list"),
        ({"id": "b", "turns": []}, "turns: expected a list"),
        ({"id": "b", "turns": ["x"]}, "turn 1: expected a prompt"),
        ({"id": "b", "turns": [{"prompt": "x"}]}, "turn 1: answer: expected text"),
        ({"id": "b", "turns": [{"prompt": "x", "answer": "y", "z": 1}]}, "turn 1: unknown field 'z'"),
        (told("a", ("x", "y")), "the id 'a' of line 1 again"),
        (told("", ("x", "y")), "id: expected text"),
    ],
)
def test_a_line_that_is_no_conversation_is_named_though_it_is_not_asked_for(
    tmp_path: Path, document: dict[str, Any], why: str
) -> None:
    with pytest.raises(ContractError, match=f"line 2: {why}"):
        read(file_of(tmp_path, told("a", ("x", "y")), document))


def test_sharegpt_is_told_in_plain_words(tmp_path: Path) -> None:
    file = shared(tmp_path, spoken("a", ("human", "Hi "), ("gpt", " Hello."), ("human", "Bye")))
    assert read(file, "sharegpt") == (
        Turn("a", 1, "Human: Hi\n\nAssistant:"),
        Turn("a", 2, "Human: Hi\n\nAssistant: Hello.\n\nHuman: Bye\n\nAssistant:"),
    )


def test_sharegpt_conversations_start_with_a_person_and_end_where_nobody_takes_a_turn(tmp_path: Path) -> None:
    file = shared(
        tmp_path,
        spoken("nobody"),
        spoken("model-only", ("gpt", "Hello.")),
        spoken("system-first", ("system", "Be kind"), ("user", "Hi"), ("chatgpt", "Hello.")),
        spoken("twice", ("human", "Hi"), ("human", "Hi?"), ("gpt", "Hello.")),
        spoken("silent", ("human", "Hi"), ("gpt", ""), ("human", "Hi?")),
        spoken("twice", ("human", "The id again"), ("gpt", "Hello.")),
    )
    turns = read(file, "sharegpt", conversations=3)
    assert [(turn.conversation, turn.turn) for turn in turns] == [
        ("system-first", 1),
        ("twice", 1),
        ("silent", 1),
    ]
    assert turns[0].prompt == "Human: Hi\n\nAssistant:"
    with pytest.raises(ContractError, match="3 of its 3"):
        read(file, "sharegpt", conversations=4)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{}", "expected ShareGPT's list"),
        (b"[", "not JSON"),
        (b'["\xff"]', "not UTF-8"),
        (b"[1]", "conversation 1: expected an object"),
        (b'[{"id": 3, "conversations": []}]', "conversation 1: id: expected text"),
        (b'[{"id": "a"}]', "conversation 1: conversations: expected a list"),
        (b'[{"id": "a", "conversations": [{"from": "human"}]}]', "conversation 1: message 1: expected"),
    ],
)
def test_what_is_not_sharegpts_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "shared.json").write_bytes(content)
    with pytest.raises(ContractError, match=why):
        read(tmp_path / "shared.json", "sharegpt")
