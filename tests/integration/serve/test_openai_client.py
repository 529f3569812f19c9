"""The `openai` Python client, unmodified, against the real service."""

import json
import subprocess
from pathlib import Path

import pytest

SESSION = Path(__file__).with_name("openai_session.py")


@pytest.fixture(scope="module")
def session(running_service, oracle_python):
    """What the client saw."""
    token = (running_service.folder / "token").read_text()
    done = subprocess.run(
        [str(oracle_python), str(SESSION), running_service.url, token],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_completion_has_exact_usage_and_logprobs(session):
    completion = session["completion"]
    choice, usage = completion["choices"][0], completion["usage"]
    assert (usage["completion_tokens"], choice["finish_reason"]) == (24, "length")
    assert usage["total_tokens"] == usage["prompt_tokens"] + 24
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == 24
    assert all(value <= 0 for value in logprobs["token_logprobs"])
    # greedy: the chosen token is the most likely one
    for token, value, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert value == max(top.values()) == top[token]
    assert "".join(logprobs["tokens"]).startswith(choice["text"][:20])


def test_a_streamed_completion_is_the_whole_one(session):
    *chunks, last = session["completion_chunks"]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == session["completion"]["choices"][0]["text"]
    assert last["usage"] == session["completion"]["usage"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_a_chat_answers_and_streams_the_same_words(session):
    chat, (*parts, last) = session["chat"], session["chat_chunks"]
    content = chat["choices"][0]["message"]["content"]
    assert chat["choices"][0]["message"]["role"] == "assistant"
    assert "".join(part["choices"][0]["delta"]["content"] for part in parts) == content
    assert last["usage"] == chat["usage"]
    tokens = chat["choices"][0]["logprobs"]["content"]
    assert len(tokens) == chat["usage"]["completion_tokens"]
    assert all(len(token["top_logprobs"]) == 3 for token in tokens)


def test_a_seed_repeats(session):
    assert session["seeded"][0] == session["seeded"][1]


def test_a_stop_string_stops(session):
    choice = session["stopped"]["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert " " not in choice["text"]


@pytest.mark.parametrize(
    "name, kind, status, code",
    [
        ("token", "AuthenticationError", 401, "invalid_api_key"),
        ("model", "NotFoundError", 404, "model_not_found"),
        ("prompt", "BadRequestError", 400, "invalid_value"),
        ("max_tokens", "BadRequestError", 400, "context_length_exceeded"),
        ("n", "BadRequestError", 400, "unsupported_value"),
        ("field", "BadRequestError", 400, "unknown_field"),
        ("messages", "BadRequestError", 400, "invalid_value"),
    ],
)
def test_errors_are_the_clients_own_exceptions(session, name, kind, status, code):
    error = session["errors"][name]
    assert (error["kind"], error["status"], error["code"]) == (kind, status, code)
