"""The service whose tokens come at a set pace: what it counts, and that our own client reads it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lean.bench.client import ClientSettings, CompletionClient, CompletionRequest, clock_since_now
from lean.bench.metrics import request_metrics
from lean.bench.prompt import exact_prompt, open_tokenizer
from lean.costs.paced import Pace
from lean.costs.service import Running, paced_service
from lean.demo import CHECKPOINT_DIR


@pytest.fixture(scope="module")
def paced() -> Iterator[Running]:
    with paced_service(CHECKPOINT_DIR, first_ms=2.0, token_ms=0.5) as running:
        yield running


def events(answer: httpx.Response) -> list[Any]:
    """The documents of a stream, which ends as OpenAI's do."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert answer.headers["content-type"].startswith("text/event-stream") and lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def ask(paced: Running, path: str, body: dict[str, Any]) -> httpx.Response:
    answer = httpx.post(f"{paced.ready['url']}{path}", json={"model": "paced", **body}, trust_env=False)
    assert answer.status_code == 200
    return answer


ASKED = {
    "max_tokens": 9,
    "stream": True,
    "stream_options": {"include_usage": True},
    "return_token_ids": True,
}


@pytest.mark.parametrize(
    ("path", "prompt", "counted"),
    [
        ("/v1/completions", {"prompt": [5, 6, 7]}, 3),
        ("/v1/completions", {"prompt": "The lamp"}, None),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "The lamp"}]}, None),
    ],
)
def test_a_stream_has_one_event_a_token_and_then_the_counts(
    paced: Running, path: str, prompt: dict[str, Any], counted: int | None
) -> None:
    *tokens, last = events(ask(paced, path, ASKED | prompt))
    choices = [event["choices"][0] for event in tokens]
    assert [choice["token_ids"] for choice in choices] == [[7]] * 9
    assert [choice["finish_reason"] for choice in choices] == [None] * 8 + ["length"]
    texts = [choice["delta"]["content"] if "delta" in choice else choice["text"] for choice in choices]
    assert texts == [" x"] * 9
    expected = counted or len(open_tokenizer(CHECKPOINT_DIR).encode("The lamp").ids)
    assert last["choices"] == []
    assert last["usage"] == {
        **{"prompt_tokens": expected, "completion_tokens": 9, "total_tokens": expected + 9},
    }


def test_what_is_not_asked_for_is_left_out(paced: Running) -> None:
    bare = events(ask(paced, "/v1/completions", {"prompt": [1], "max_tokens": 3, "stream": True}))
    assert len(bare) == 3 and all("token_ids" not in event["choices"][0] for event in bare)


def test_an_answer_in_one_document_has_the_same_counts(paced: Running) -> None:
    messages = {"messages": [{"role": "user", "content": "The lamp"}], "max_tokens": 4}
    whole = ask(paced, "/v1/chat/completions", messages).json()
    assert whole["choices"][0]["message"]["content"] == " x" * 4
    assert whole["usage"]["completion_tokens"] == 4
    assert ask(paced, "/v1/completions", {"prompt": [1, 2], "max_tokens": 2}).json()["usage"] == {
        **{"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
    }


def test_our_client_reads_every_token_and_the_counts(paced: Running) -> None:
    prompt = exact_prompt(open_tokenizer(CHECKPOINT_DIR), 16, "a seed")

    async def measured() -> Any:
        settings, clock = ClientSettings(), clock_since_now()
        async with CompletionClient(paced.ready["url"], None, settings, clock) as client:
            request = CompletionRequest(
                model=await client.model(),
                prompt=prompt,
                prompt_form="ids",
                max_new_tokens=12,
                phase="measured",
                stream=0,
                round=0,
            )
            return await client.complete(request)

    sample = asyncio.run(measured())
    assert sample.error is None and sample.event_tokens == (1,) * 12
    assert (sample.usage_prompt_tokens, sample.usage_completion_tokens) == (16, 12)
    metrics = request_metrics(sample)
    assert metrics is not None and metrics.ttft_s >= 0.002


def test_a_pace_has_no_drift() -> None:
    pace = Pace(first_s=0.05, token_s=0.005)
    assert [pace.due(number) for number in (0, 1, 200)] == pytest.approx([0.05, 0.055, 1.05])


def test_it_ends_with_the_block(tmp_path: Path) -> None:
    with paced_service(CHECKPOINT_DIR, first_ms=1.0, token_ms=1.0) as running:
        url = running.ready["url"]
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health", trust_env=False)
