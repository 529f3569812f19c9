"""The two OpenAI request kinds, parsed strictly into frozen calls. Nothing is tokenised here.

Fields of no effect on what is generated are accepted and ignored (`IGNORED_FIELDS`). Fields that would change
the result and are not implemented are refused by name unless they hold their neutral value. Anything else is
an unknown field. `min_tokens`, `ignore_eos`, `top_k` and `return_token_ids` are vLLM's names for what OpenAI
does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lean.leanserve.http.body import Fields, check_text
from lean.leanserve.http.errors import bad_request
from lean.leanserve.tokenizer import Message

# cache_prompt is llama.cpp's: this service never reuses a prompt's cache, so either value is already true of
# it.
IGNORED_FIELDS = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "cache_prompt"}
)
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_LOGPROBS = 20
INT32 = 2**31 - 1
INT63 = 2**63 - 1
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What completions and chat have in common. `top_logprobs` None: no log probabilities asked for."""

    model: str
    max_tokens: int | None
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: tuple[str, ...]
    ignore_eos: bool
    stream: bool
    include_usage: bool
    return_token_ids: bool
    top_logprobs: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionCall:
    """`POST /v1/completions`. `prompt` is text or token ids."""

    prompt: str | tuple[int, ...]
    options: Options


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """`POST /v1/chat/completions`."""

    messages: tuple[Message, ...]
    options: Options


Call = CompletionCall | ChatCall


def parse_completion(document: dict[str, Any]) -> CompletionCall:
    """A completion request. Errors: `ApiError` 400 that names the field."""
    fields = Fields(document)
    prompt = _prompt(fields.require("prompt", fields.take("prompt")))
    top_logprobs = fields.integer("logprobs", 0, MAX_LOGPROBS)
    max_tokens = fields.integer("max_tokens", 1, INT32)
    fields.only("echo", (False,), "echo is not supported; the prompt is not repeated")
    fields.only("suffix", ("",), "suffix is not supported")
    fields.only("best_of", (1,), "only best_of=1 is supported")
    options = _options(fields, max_tokens=16 if max_tokens is None else max_tokens, top_logprobs=top_logprobs)
    fields.done(IGNORED_FIELDS)
    return CompletionCall(prompt=prompt, options=options)


def parse_chat(document: dict[str, Any]) -> ChatCall:
    """A chat request. Errors: `ApiError` 400 that names the field."""
    fields = Fields(document)
    messages = _messages(fields.require("messages", fields.take("messages")))
    wanted, top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, MAX_LOGPROBS)
    if top is not None and not wanted:
        raise bad_request("top_logprobs: needs logprobs to be true", "top_logprobs")
    old, new = fields.integer("max_tokens", 1, INT32), fields.integer("max_completion_tokens", 1, INT32)
    if old is not None and new is not None and old != new:
        raise bad_request("max_tokens and max_completion_tokens disagree; send one", "max_completion_tokens")
    _refuse_chat_features(fields)
    options = _options(
        fields, max_tokens=new if old is None else old, top_logprobs=(top or 0) if wanted else None
    )
    fields.done(IGNORED_FIELDS)
    return ChatCall(messages=messages, options=options)


def _refuse_chat_features(fields: Fields) -> None:
    for name in ("tools", "functions"):
        fields.only(name, ([],), f"{name} are not supported")
    fields.only("tool_choice", ("none",), "tools are not supported")
    fields.only("function_call", ("none",), "functions are not supported")
    fields.only("response_format", ({"type": "text"},), "only the response format text is supported")
    fields.only("modalities", (["text"],), "only text is supported")


def _options(fields: Fields, *, max_tokens: int | None, top_logprobs: int | None) -> Options:
    fields.only("n", (1,), "only n=1 is supported; send the request n times")
    for name in ("presence_penalty", "frequency_penalty", "min_p"):
        fields.only(name, (0,), f"{name} is not supported; only 0 is accepted")
    fields.only("repetition_penalty", (1,), "repetition_penalty is not supported; only 1 is accepted")
    fields.only("logit_bias", ({},), "logit_bias is not supported")
    stream = fields.flag("stream")
    min_tokens = fields.integer("min_tokens", 0, INT32) or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise bad_request(f"min_tokens: {min_tokens} is more than max_tokens {max_tokens}", "min_tokens")
    return Options(
        model=fields.require("model", fields.text("model")),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=fields.number("temperature", 0.0, 2.0, 1.0),
        top_p=fields.number("top_p", 0.0, 1.0, 1.0, above_low=True),
        top_k=max(0, fields.integer("top_k", -1, INT32) or 0),
        seed=fields.integer("seed", -INT63 - 1, INT63),
        stop=_stop(fields.take("stop")),
        ignore_eos=fields.flag("ignore_eos"),
        stream=stream,
        include_usage=_include_usage(fields, stream),
        return_token_ids=fields.flag("return_token_ids"),
        top_logprobs=top_logprobs,
    )


def _include_usage(fields: Fields, stream: bool) -> bool:
    value = fields.take("stream_options")
    if value is None:
        return False
    if not isinstance(value, dict):
        raise bad_request("stream_options: expected an object", "stream_options", code="invalid_type")
    if not stream:
        raise bad_request("stream_options: only with stream=true", "stream_options")
    inner = Fields(value, "stream_options.")
    include = inner.flag("include_usage")
    inner.done(frozenset({"include_obfuscation"}))
    return include


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if value in ("", []):
        raise bad_request("prompt: empty; send at least one token", "prompt")
    if isinstance(value, str):
        return check_text(value, "prompt")
    if isinstance(value, list) and any(isinstance(item, str | list) for item in value):
        raise bad_request(
            "prompt: one prompt per request; got a list of several", "prompt", code="unsupported_value"
        )
    if not isinstance(value, list) or any(isinstance(t, bool) or not isinstance(t, int) for t in value):
        raise bad_request("prompt: expected a string or a list of token ids", "prompt", code="invalid_type")
    return tuple(value)


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise bad_request("stop: expected a string or a list of strings", "stop", code="invalid_type")
    if len(stops) > MAX_STOPS:
        raise bad_request(f"stop: at most {MAX_STOPS} strings, got {len(stops)}", "stop")
    if not all(1 <= len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise bad_request(f"stop: each string needs 1 to {MAX_STOP_CHARACTERS} characters", "stop")
    return tuple(check_text(stop, "stop") for stop in stops)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise bad_request("messages: expected a list of messages", "messages", code="invalid_type")
    if not value:
        raise bad_request("messages: empty; send at least one message", "messages")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise bad_request(f"{name}: expected an object with role and content", name, code="invalid_type")
    fields = Fields(value, f"{name}.")
    role = fields.require("role", fields.text("role"))
    if role not in ROLES:
        raise bad_request(f"{name}.role: expected one of {', '.join(ROLES)}", f"{name}.role")
    content = _content(fields.require("content", fields.take("content")), f"{name}.content")
    fields.take("name")
    for absent in ("refusal", "audio", "tool_calls", "function_call", "annotations"):
        fields.only(absent, ([],), f"{absent} is not supported in a message")
    fields.done()
    return Message(role=role, content=content)


def _content(value: Any, name: str) -> str:
    if isinstance(value, str):
        return check_text(value, name)
    if not isinstance(value, list) or not value:
        raise bad_request(f"{name}: expected a string or a list of text parts", name, code="invalid_type")
    parts = []
    for index, item in enumerate(value):
        part = Fields(item if isinstance(item, dict) else {"type": None}, f"{name}[{index}].")
        if part.take("type") != "text":
            raise bad_request(
                f"{name}[{index}]: only parts of type text are supported", name, code="unsupported_value"
            )
        parts.append(part.require("text", part.text("text")))
        part.done()
    return "".join(parts)
