"""How each system's completions API is asked for the same thing: greedy, exactly N tokens, streamed.

Sources: vLLM's and SGLang's OpenAI-compatible server documentation, llama.cpp's tools/server/README, and
transformers' `cli/serving/completion.py`, each of the version in `lean.baseline.systems`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

PromptForm = Literal["ids", "text"]
Fields = Callable[[int], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One way of asking. Every one is greedy and ignores the end of sequence, in its own words.

    `prompt_forms`: what the server takes as a prompt. `ends_with_done`: the stream ends with OpenAI's
    `[DONE]`; else with the event that carries usage and finish reason. `fields`: what is sent beside model,
    prompt, max_tokens, temperature and stream, for a number of tokens.
    """

    name: str
    prompt_forms: tuple[PromptForm, ...]
    ends_with_done: bool
    fields: Fields


def _vllm(tokens: int) -> dict[str, Any]:
    """`return_token_ids` and `ignore_eos` are vLLM's extensions; SGLang and our own service take them too."""
    return {
        "min_tokens": tokens,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }


def _llama_cpp(tokens: int) -> dict[str, Any]:
    """`cache_prompt` off: a prefix that an earlier request left would not be read again."""
    return {"ignore_eos": True, "cache_prompt": False, "stream_options": {"include_usage": True}}


def _transformers(tokens: int) -> dict[str, Any]:
    """It knows no `ignore_eos`; fewer new tokens than asked for are forbidden, which is the same."""
    generation = {"do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens}
    return {"generation_config": json.dumps(generation)}


VLLM = Dialect(name="vllm", prompt_forms=("ids", "text"), ends_with_done=True, fields=_vllm)
DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "vllm": VLLM,
        "llama.cpp": Dialect(
            name="llama.cpp",
            prompt_forms=("ids", "text"),
            ends_with_done=True,
            fields=_llama_cpp,
        ),
        "transformers": Dialect(
            name="transformers",
            prompt_forms=("text",),
            ends_with_done=False,
            fields=_transformers,
        ),
    }
)
