"""OpenAI's two shapes of log probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lean.leanserve.runner import Choice

# JSON has no minus infinity; vLLM sends the same floor.
FLOOR = -9999.0


def completion_logprobs(
    choices: Sequence[Choice], token_name: Callable[[int], bytes], offset: int
) -> tuple[dict[str, Any], int]:
    """The completions shape, and the text offset after these tokens.

    Offsets count characters of the token names.
    """
    names = [text_of(token_name(choice.token)) for choice in choices]
    offsets = []
    for name in names:
        offsets.append(offset)
        offset += len(name)
    shape = {
        "tokens": names,
        "token_logprobs": [_finite(choice.logprob) for choice in choices],
        "top_logprobs": [_alternatives(choice, token_name) for choice in choices],
        "text_offset": offsets,
    }
    return shape, offset


def chat_logprobs(choices: Sequence[Choice], token_name: Callable[[int], bytes]) -> dict[str, Any]:
    """The chat shape."""
    content = [
        _entry(token_name(choice.token), choice.logprob)
        | {"top_logprobs": [_entry(token_name(token), value) for token, value in choice.top]}
        for choice in choices
    ]
    return {"content": content, "refusal": None}


def text_of(name: bytes) -> str:
    """A token as text; bytes that are no text by themselves in OpenAI's form `bytes:\\xe2\\x80`."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in name)


def _alternatives(choice: Choice, token_name: Callable[[int], bytes]) -> dict[str, float]:
    ranked = [*choice.top, (choice.token, choice.logprob)]
    return {text_of(token_name(token)): _finite(value) for token, value in ranked}


def _entry(name: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": text_of(name), "logprob": _finite(logprob), "bytes": list(name)}


def _finite(logprob: float | None) -> float:
    if logprob is None:
        raise RuntimeError("the runner chose a token without the log probability it was asked for")
    return max(logprob, FLOOR)
