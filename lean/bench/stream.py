"""Server-sent events of a completion stream, read after the fact from (arrival time, bytes) chunks.

Source of the framing: the WHATWG HTML standard, "Server-sent events"; of the payload: OpenAI's completions
API with vLLM's `token_ids` per choice. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a stream said. `token_ids` is None unless every event that carried text also carried its ids."""

    event_ns: tuple[int, ...] = ()
    event_tokens: tuple[int | None, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | None = None
    text: str = ""
    finished: bool = False

    @property
    def told_its_end(self) -> bool:
        """Whether a finish reason and the final counts came: how a stream without `[DONE]` ends."""
        return self.finish_reason is not None and self.completion_tokens is not None


class StreamError(Exception):
    """A stream that is not what the API promises; `answer` is what it said until then."""

    def __init__(self, problem: str, answer: Answer) -> None:
        super().__init__(problem)
        self.answer = answer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    at: int
    text: str
    ids: tuple[int, ...] | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    has_choice: bool


def read_answer(chunks: Sequence[tuple[int, bytes]]) -> Answer:
    """The answer of one stream. Errors: `StreamError` carrying what was understood before the fault."""
    events: list[_Event] = []
    finished = False
    for at, payload in split_events(chunks):
        if payload == b"[DONE]":
            finished = True
            break
        try:
            events.append(_event(at, payload))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise StreamError(f"bad event: {error}", _answer(events)) from None
    return replace(_answer(events), finished=finished)


def split_events(chunks: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """(arrival time of the event's last byte, its data).

    Comments, other fields and an unfinished event are dropped.
    """
    pending = b""
    data: list[bytes] = []
    for at, chunk in chunks:
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield at, b"\n".join(data)
                data = []


def _event(at: int, payload: bytes) -> _Event:
    message = json.loads(payload)
    if "error" in message:
        problem = message["error"]
        said = problem.get("message", problem) if isinstance(problem, dict) else problem
        raise ValueError(f"the service reports {said}")
    choices = message.get("choices") or []
    choice: dict[str, Any] = choices[0] if choices else {}
    usage = message.get("usage") or {}
    ids = choice.get("token_ids")
    return _Event(
        at=at,
        text=str(choice.get("text") or ""),
        ids=None if ids is None else tuple(_count(value, "token id") for value in ids),
        finish_reason=None if choice.get("finish_reason") is None else str(choice["finish_reason"]),
        prompt_tokens=_count_or_none(usage, "prompt_tokens"),
        completion_tokens=_count_or_none(usage, "completion_tokens"),
        has_choice=bool(choices),
    )


def _answer(events: Sequence[_Event]) -> Answer:
    streamed = [event for event in events if event.has_choice]
    counts: list[int | None] = []
    told = 0
    for event in streamed:
        end = not event.text and event.ids is None and None in counts  # its usage counts what came before
        counts.append(0 if end else _tokens(event, told))
        told = event.completion_tokens if event.completion_tokens is not None else told
    complete = bool(streamed) and all(event.ids is not None or not event.text for event in streamed)
    ids = tuple(token for event in streamed for token in event.ids or ())
    return Answer(
        event_ns=tuple(event.at for event in streamed),
        event_tokens=tuple(counts),
        prompt_tokens=_last(event.prompt_tokens for event in events),
        completion_tokens=_last(event.completion_tokens for event in events),
        finish_reason=_last(event.finish_reason for event in streamed),
        token_ids=ids if complete and ids else None,
        text="".join(event.text for event in streamed),
    )


def _tokens(event: _Event, told: int) -> int | None:
    """Tokens of one event: its ids, else the growth of a running usage count.

    None where neither says, unless the event is empty.
    """
    if event.ids is not None:
        return len(event.ids)
    if event.completion_tokens is not None and event.completion_tokens >= told:
        return event.completion_tokens - told
    return None if event.text else 0


def _last(values: Iterator[Any]) -> Any:
    return next((value for value in reversed(list(values)) if value is not None), None)


def _count_or_none(usage: dict[str, Any], name: str) -> int | None:
    return None if usage.get(name) is None else _count(usage[name], name)


def _count(value: Any, name: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{name}: expected a count, got {value!r}")
    return value
