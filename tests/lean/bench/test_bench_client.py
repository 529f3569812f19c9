"""The streaming client against a service that behaves, and against one that does not."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from pathlib import Path
from typing import Any

import pytest

from lean.bench.client import (
    ClientSettings,
    CompletionClient,
    CompletionRequest,
    clock_since_now,
)
from lean.bench.prompt import Prompt
from lean.bench.sample import Sample
from lean.errors import NotReadyError, UsageError

PROMPT = Prompt(ids=(5, 6, 7, 8), text="a b c d")


def request(**changes: Any) -> CompletionRequest:
    plain: dict[str, Any] = {
        "model": "scripted",
        "prompt": PROMPT,
        "prompt_form": "ids",
        "max_new_tokens": 6,
        "phase": "measured",
        "stream": 0,
        "round": 0,
    }
    return CompletionRequest(**(plain | changes))


def complete(url: str, token_file: Path, settings: ClientSettings | None = None, **changes: Any) -> Sample:
    async def go() -> Sample:
        settled = settings or ClientSettings(connect=2, read=2, request=5)
        token = token_file.read_text().strip()
        async with CompletionClient(url, token, settled, clock_since_now()) as client:
            return await client.complete(request(**changes))

    return asyncio.run(go())


def served_model(url: str, token: str = "x") -> str:
    async def go() -> str:
        async with CompletionClient(url, token, ClientSettings(connect=2), clock_since_now()) as client:
            return await client.model()

    return asyncio.run(go())


def test_a_good_stream_becomes_a_complete_sample(service: Any, token_file: Path) -> None:
    sample = complete(service.url, token_file)
    assert sample.error is None and sample.finished and sample.http_status == 200
    assert (sample.prompt_tokens, sample.usage_prompt_tokens) == (4, 4)
    assert (sample.counted_tokens, sample.usage_completion_tokens) == (6, 6)
    assert sample.finish_reason == "length"
    assert sample.token_ids_sha256 == hashlib.sha256(b"7,7,7,7,7,7").hexdigest()
    assert sample.text_excerpt == "xxxxxx"
    assert sample.first_byte_ns is not None
    times = (sample.sent_ns, sample.first_byte_ns, *sample.event_ns, sample.end_ns)
    assert list(times) == sorted(times)


def test_the_request_is_greedy_exact_and_asks_for_proof(service: Any, token_file: Path) -> None:
    complete(service.url, token_file)
    complete(service.url, token_file, prompt_form="text")
    ids, text = service.script.bodies
    assert ids["prompt"] == [5, 6, 7, 8] and text["prompt"] == "a b c d"
    assert ids["temperature"] == 0 and ids["ignore_eos"] is True and ids["return_token_ids"] is True
    assert ids["max_tokens"] == ids["min_tokens"] == 6
    assert ids["stream_options"] == {"include_usage": True}


def test_a_chunk_is_not_a_token(service: Any, token_file: Path) -> None:
    service.script.per_event = (1, 3, 2)
    sample = complete(service.url, token_file)
    assert sample.event_tokens == (1, 3, 2)
    assert sample.counted_tokens == 6


def test_without_token_ids_the_counts_of_chunks_are_unknown(service: Any, token_file: Path) -> None:
    service.script.token_ids = False
    service.script.per_event = (2,)
    sample = complete(service.url, token_file)
    assert sample.event_tokens == (None, None, None)
    assert sample.counted_tokens is None and sample.token_ids_sha256 is None
    assert sample.usage_completion_tokens == 6 and sample.error is None


def test_a_running_usage_count_stands_in_for_token_ids(service: Any, token_file: Path) -> None:
    service.script.token_ids = False
    service.script.running_usage = True
    service.script.per_event = (2, 1)
    assert complete(service.url, token_file).event_tokens == (2, 1, 2, 1)


def test_wrong_counts_and_missing_usage_are_kept_as_they_came(service: Any, token_file: Path) -> None:
    service.script.completion_tokens_off = 2
    sample = complete(service.url, token_file)
    assert (sample.usage_completion_tokens, sample.counted_tokens) == (8, 6)
    service.script.usage = False
    sample = complete(service.url, token_file)
    assert sample.usage_completion_tokens is None and sample.usage_prompt_tokens is None


def test_a_connection_cut_in_the_stream_keeps_what_arrived(service: Any, token_file: Path) -> None:
    service.script.cut_after = 3
    sample = complete(service.url, token_file)
    assert sample.error is not None and "RemoteProtocolError" in sample.error
    assert sample.counted_tokens == 3 and not sample.finished


def test_a_stream_that_ends_without_done_is_an_error(service: Any, token_file: Path) -> None:
    service.script.silent_end_after = 2
    sample = complete(service.url, token_file)
    assert sample.error == "the stream ended before [DONE]"
    assert sample.counted_tokens == 2


def test_a_refusal_carries_the_service_s_own_words(service: Any, token_file: Path) -> None:
    service.script.status = 500
    sample = complete(service.url, token_file)
    assert sample.error == "HTTP 500: the model fell over"
    assert sample.http_status == 500 and sample.event_ns == ()


def test_a_wrong_token_is_refused_and_does_not_show_in_the_sample(service: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("another-canary")
    sample = complete(service.url, other)
    assert sample.error == "HTTP 401: no or wrong bearer token"
    assert "another-canary" not in repr(sample)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"data: {broken\n\n", "bad event"),
        (b'data: {"error": {"message": "out of slots"}}\n\n', "the service reports out of slots"),
        (b"data: 5\n\n", "bad event"),
        (b'data: {"choices": [{"token_ids": ["x"]}]}\n\n', "token id: expected a count"),
        (b'data: {"choices": [{"token_ids": [-1]}]}\n\n', "token id: expected a count"),
        (b'data: {"choices": 3}\n\n', "bad event"),
        (b'data: {"choices": [], "usage": {"prompt_tokens": 1e99}}\n\n', "prompt_tokens: expected a count"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "bad event"),
    ],
)
def test_an_event_that_is_none_is_an_error_and_never_an_exception(
    service: Any, token_file: Path, raw: bytes, problem: str
) -> None:
    service.script.raw_event = raw
    sample = complete(service.url, token_file)
    assert sample.error is not None and problem in sample.error
    assert not sample.finished


def test_comments_line_ends_and_events_cut_anywhere_do_not_matter(service: Any, token_file: Path) -> None:
    service.script.raw_event = b': keep-alive\r\n\r\nevent: x\r\ndata: {"choices":\r\ndata: []}\r\n\r\n'
    sample = complete(service.url, token_file)
    assert sample.error is None and sample.counted_tokens == 6


def test_a_service_that_stops_talking_ends_with_the_read_deadline(service: Any, token_file: Path) -> None:
    service.script.hang_after = 2
    sample = complete(service.url, token_file, ClientSettings(connect=2, read=0.3, request=5))
    assert sample.error is not None and "ReadTimeout" in sample.error
    assert sample.counted_tokens == 2


def test_a_service_that_drips_forever_ends_with_the_request_deadline(service: Any, token_file: Path) -> None:
    service.script.gap_s = 0.05
    settings = ClientSettings(connect=2, read=2, request=0.3)
    sample = complete(service.url, token_file, settings, max_new_tokens=1000)
    assert sample.error == "no end within 0.3 s"
    assert 0 < len(sample.event_ns) < 1000


def test_nobody_listening_is_an_error_in_the_sample_and_not_ready_for_the_model(token_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    sample = complete(url, token_file)
    assert sample.error is not None and "ConnectError" in sample.error
    with pytest.raises(NotReadyError, match=r"no service at http://127.*remote.serve"):
        served_model(url)


def test_a_service_that_is_still_loading_is_not_ready(service: Any) -> None:
    service.script.health = 503
    with pytest.raises(NotReadyError, match="says 503"):
        served_model(service.url)


def test_the_one_model_is_found_by_asking(service: Any) -> None:
    assert served_model(service.url) == "scripted"


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1:1", "http://example.com", "http://10.0.0.1:80", "ftp://127.0.0.1", "", "http://[::1"],
)
def test_only_a_service_on_this_machine_can_be_measured(url: str) -> None:
    with pytest.raises(UsageError):
        CompletionClient(url, "t", ClientSettings(), clock_since_now())


def test_the_default_deadlines_are_what_the_design_says() -> None:
    settings = ClientSettings()
    assert (settings.connect, settings.read, settings.request) == (10.0, 120.0, 900.0)
