"""From a parsed call to what the engine runs, checked against the runner and the pack."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import TypeVar

from lean.leanserve.http.errors import ApiError, bad_request
from lean.leanserve.http.schema import INT63, Call, ChatCall, CompletionCall, Options
from lean.leanserve.request import GenerationRequest
from lean.leanserve.runner import RunnerFacts, Sampling
from lean.leanserve.tokenizer import PackTokenizer

# Tokenising this many characters takes a few milliseconds; more goes to a thread so that no other stream
# waits for it.
INLINE_CHARACTERS = 8192

T = TypeVar("T")


async def to_generation(
    call: Call, *, tokenizer: PackTokenizer, facts: RunnerFacts, models: tuple[str, ...]
) -> GenerationRequest:
    """The engine's request.

    Errors: `ApiError` 404 for another model, 400 for a prompt or length that does not fit.
    """
    options = call.options
    if options.model not in models:
        raise ApiError(
            404,
            f"model {options.model[:80]!r} is not served here; use {models[0]!r}",
            code="model_not_found",
            param="model",
        )
    prompt = await _prompt_tokens(call, tokenizer, facts)
    field = "messages" if isinstance(call, ChatCall) else "prompt"
    room = facts.max_length - len(prompt)
    if room < 1:
        raise bad_request(
            f"{field}: {len(prompt)} tokens leave no room to generate in {facts.max_length} positions",
            field,
            code="context_length_exceeded",
        )
    max_tokens = room if options.max_tokens is None else options.max_tokens
    if max_tokens > room:
        raise bad_request(
            f"max_tokens: {max_tokens} after a prompt of {len(prompt)} tokens do not fit the "
            f"{facts.max_length} positions of this service; at most {room}",
            "max_tokens",
            code="context_length_exceeded",
        )
    return _request(options, prompt, max_tokens, _stop_tokens(call, tokenizer))


def _request(
    options: Options, prompt: tuple[int, ...], max_tokens: int, stop_tokens: frozenset[int]
) -> GenerationRequest:
    if options.min_tokens > max_tokens:
        raise bad_request(
            f"min_tokens: {options.min_tokens} is more than the {max_tokens} that fit", "min_tokens"
        )
    seed = secrets.randbits(63) if options.seed is None else options.seed & INT63
    sampling = Sampling(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=seed if options.temperature > 0 else 0,
        suppress=tuple(sorted(stop_tokens)) if options.min_tokens else (),
        suppress_steps=options.min_tokens if stop_tokens else 0,
        top_logprobs=options.top_logprobs,
        max_tokens=max_tokens,
    )
    return GenerationRequest(
        prompt=prompt,
        sampling=sampling,
        max_tokens=max_tokens,
        min_tokens=options.min_tokens,
        stop_tokens=stop_tokens,
        stop_strings=options.stop,
    )


def _stop_tokens(call: Call, tokenizer: PackTokenizer) -> frozenset[int]:
    if call.options.ignore_eos:
        return frozenset()
    if isinstance(call, ChatCall) and tokenizer.chat_tokens is not None:
        return tokenizer.eos | {tokenizer.chat_tokens[1]}
    return tokenizer.eos


async def _prompt_tokens(call: Call, tokenizer: PackTokenizer, facts: RunnerFacts) -> tuple[int, ...]:
    if isinstance(call, CompletionCall):
        if isinstance(call.prompt, str):
            return await _inline_or_thread(len(call.prompt), tokenizer.encode, call.prompt)
        wrong = next((token for token in call.prompt if not 0 <= token < facts.vocab), None)
        if wrong is not None:
            raise bad_request(f"prompt: token id out of range; expected 0 to {facts.vocab - 1}", "prompt")
        return call.prompt
    if tokenizer.chat_tokens is None:
        raise bad_request(
            "messages: this pack's tokenizer has no ChatML tokens; use /v1/completions", "messages"
        )
    size = sum(len(message.content) for message in call.messages)
    return await _inline_or_thread(size, tokenizer.encode_chat, call.messages)


async def _inline_or_thread(size: int, encode: Callable[[T], tuple[int, ...]], text: T) -> tuple[int, ...]:
    tokens = encode(text) if size <= INLINE_CHARACTERS else await asyncio.to_thread(encode, text)
    if not tokens:
        raise bad_request("prompt: no tokens in it", "prompt")
    return tokens
