"""Run by the oracle environment's Python: the openai client against the service. Prints one JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import openai


def error_of(call: Callable[[], Any]) -> dict[str, Any]:
    """The client's own exception for a failing call."""
    try:
        call()
    except openai.APIStatusError as error:
        return {
            "kind": type(error).__name__,
            "status": error.status_code,
            "code": error.code,
            "param": error.param,
        }
    return {"kind": None}


def main(url: str, token: str) -> dict[str, Any]:
    """Every call of interest, as plain data."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0)
    model = client.models.list().data[0].id
    text: dict[str, Any] = {
        "model": model,
        "prompt": "The function returns",
        "max_tokens": 24,
        "temperature": 0,
    }
    exact = {"ignore_eos": True, "min_tokens": 24}
    completion = client.completions.create(**text, logprobs=2, extra_body=exact)
    usage = {"include_usage": True}
    chunks = list(client.completions.create(**text, stream=True, stream_options=usage, extra_body=exact))
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Open a file."}]
    talk: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_completion_tokens": 12,
        "temperature": 0,
    }
    chat = client.chat.completions.create(**talk, logprobs=True, top_logprobs=3)
    parts = list(client.chat.completions.create(**talk, stream=True, stream_options=usage))
    seeded = {**text, "temperature": 0.9, "top_p": 0.9, "seed": 7}
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="not-the-token", max_retries=0)
    return {
        "completion": completion.model_dump(),
        "completion_chunks": [chunk.model_dump() for chunk in chunks],
        "chat": chat.model_dump(),
        "chat_chunks": [part.model_dump() for part in parts],
        "seeded": [client.completions.create(**seeded).choices[0].text for _ in range(2)],
        "stopped": client.completions.create(**{**text, "stop": [" "]}).model_dump(),
        "errors": {
            "token": error_of(lambda: stranger.models.list()),
            "model": error_of(lambda: client.completions.create(**{**text, "model": "gpt-4"})),
            "prompt": error_of(lambda: client.completions.create(**{**text, "prompt": ""})),
            "max_tokens": error_of(lambda: client.completions.create(**{**text, "max_tokens": 10**6})),
            "n": error_of(lambda: client.completions.create(**text, n=2)),
            "field": error_of(lambda: client.completions.create(**text, extra_body={"mirostat": 1})),
            "messages": error_of(lambda: client.chat.completions.create(**{**talk, "messages": []})),
        },
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2])))
