"""The documents that a good request gets."""

import json
import sys

import pytest

EOS = 256


def events(response):
    """The JSON documents of a server-sent event stream, which must end with [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


@pytest.fixture
def says(new_service, scripted):
    """A service that answers `hello`, and a chat that says it, with `abc`, then ends."""
    chat = b"".join((b"user\nhello", b"\n", b"assistant\n"))
    prompt = [257, *chat[:10], 258, 10, 257, *chat[11:]]
    return new_service(scripted(script={b"hello": [*b"abc", EOS], tuple(prompt): [*b"abc", EOS]}))


def test_a_completion_has_text_finish_reason_and_exact_usage(says):
    body = says.complete("hello", max_tokens=9, temperature=0).json()
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == ("abc", "stop", None)
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    assert (body["object"], body["model"], body["system_fingerprint"]) == (
        "text_completion",
        "tiny",
        "abababab-scripted",
    )
    assert set(body["timings"]) == {"queue_seconds", "prefill_seconds", "decode_seconds"}


def test_a_completion_generates_sixteen_tokens_when_not_told(service):
    assert service.complete().json()["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("prompt", ["hello", ["hello"], list(b"hello"), [list(b"hello")]])
def test_a_prompt_is_text_or_token_ids_alone_or_in_a_list_of_one(says, prompt):
    assert says.complete(prompt).json()["choices"][0]["text"] == "abc"


def test_the_contracts_name_is_a_name_of_the_model_too(says):
    assert says.complete("hello", model="tiny-contract").json()["model"] == "tiny"


def test_a_streamed_completion_adds_up_to_the_whole_one(says):
    chunks = events(says.complete("hello", stream=True))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", "c", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)
    assert "timings" in chunks[-1]


def test_a_stream_reports_usage_last_when_asked(says):
    *chunks, last = events(says.complete("hello", stream=True, stream_options={"include_usage": True}))
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 4)
    assert all(chunk["usage"] is None for chunk in chunks)


def test_a_chat_goes_through_the_template_and_ends_at_its_end_of_turn(says):
    body = says.post("/v1/chat/completions", messages=[{"role": "user", "content": "hello"}]).json()
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "abc"}
    assert (choice["finish_reason"], body["object"]) == ("stop", "chat.completion")
    assert body["usage"]["prompt_tokens"] == 24


def test_text_parts_of_a_message_are_joined(says):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    body = says.post("/v1/chat/completions", messages=[{"role": "user", "content": parts}]).json()
    assert body["choices"][0]["message"]["content"] == "abc"


def test_a_streamed_chat_names_the_role_once(says):
    messages = [{"role": "user", "content": "hello"}]
    chunks = events(says.post("/v1/chat/completions", messages=messages, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": "a"},
        {"content": "b"},
        {"content": "c"},
        {"content": ""},
    ]
    assert chunks[0]["object"] == "chat.completion.chunk"


def test_a_chat_generates_to_the_end_of_the_slot_when_not_told(new_service, scripted):
    service = new_service(scripted(max_length=64))
    body = service.post("/v1/chat/completions", messages=[{"role": "user", "content": "hello"}]).json()
    assert body["usage"]["total_tokens"] == 64


def test_token_ids_come_when_asked_and_cover_every_token(says):
    body = says.complete("hello", return_token_ids=True).json()
    assert body["choices"][0]["token_ids"] == [*b"abc", EOS]
    assert body["choices"][0]["prompt_token_ids"] == list(b"hello")
    chunks = events(says.complete("hello", return_token_ids=True, stream=True))
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[97], [98], [99], [EOS]]
    assert ["prompt_token_ids" in chunk["choices"][0] for chunk in chunks] == [True, False, False, False]


def test_a_chats_prompt_token_ids_stand_beside_the_choices(says):
    body = says.post(
        "/v1/chat/completions", messages=[{"role": "user", "content": "hello"}], return_token_ids=True
    ).json()
    assert len(body["prompt_token_ids"]) == body["usage"]["prompt_tokens"]


def test_completion_logprobs_have_openais_shape(says):
    logprobs = says.complete("hello", logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "c", "<|endoftext|>"]
    assert logprobs["token_logprobs"] == [-0.5] * 4
    assert logprobs["top_logprobs"][0] == {"a": -0.5, "b": -1.5}
    assert logprobs["text_offset"] == [0, 1, 2, 3]


def test_logprobs_zero_tells_only_the_chosen_tokens(says):
    logprobs = says.complete("hello", logprobs=0).json()["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"][0] == {"a": -0.5}


def test_streamed_logprobs_continue_their_offsets(says):
    chunks = events(says.complete("hello", logprobs=1, stream=True))
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0], [1], [2], [3]]


def test_chat_logprobs_have_openais_shape(says):
    messages = [{"role": "user", "content": "hello"}]
    body = says.post("/v1/chat/completions", messages=messages, logprobs=True, top_logprobs=1).json()
    first = body["choices"][0]["logprobs"]["content"][0]
    assert first == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}],
    }


def test_bytes_that_are_no_text_alone_show_as_bytes(new_service, scripted):
    service = new_service(scripted(script={b"hello": "é".encode()}))
    choice = service.complete("hello", max_tokens=2, logprobs=0).json()["choices"][0]
    assert choice["text"] == "é"
    assert choice["logprobs"]["tokens"] == ["bytes:\\xc3", "bytes:\\xa9"]


def test_streamed_text_never_holds_half_a_character(new_service, scripted):
    service = new_service(scripted(script={b"hello": "aé🙂".encode()}))
    chunks = events(service.complete("hello", max_tokens=7, stream=True))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "é", "🙂"]


def test_a_stop_string_is_cut_off_and_usage_counts_the_tokens_made(says):
    body = says.complete("hello", stop=["bc"]).json()
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == ("a", "stop")
    assert body["usage"]["completion_tokens"] == 3


def test_ignore_eos_goes_on_to_max_tokens(says):
    body = says.complete("hello", ignore_eos=True, max_tokens=6).json()
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == ("abcab", "length")


def test_min_tokens_holds_eos_back(says):
    body = says.complete("hello", min_tokens=5, max_tokens=9).json()
    assert body["choices"][0]["text"] == "abc~abc"
    assert body["usage"]["completion_tokens"] == 8


def test_a_seed_repeats_a_sampled_stream_and_another_one_changes_it(service):
    def text(seed):
        return service.complete(seed=seed, temperature=1).json()["choices"][0]["text"]

    assert text(3) == text(3) != text(4)
    assert text(-3) == text(-3)


def test_greedy_answers_do_not_depend_on_a_seed(service):
    answers = {
        service.complete(temperature=0, seed=seed).json()["choices"][0]["text"] for seed in (None, 1, 2)
    }
    assert len(answers) == 1


def test_nulls_and_neutral_values_are_as_good_as_absent(says):
    neutral = {"n": 1, "best_of": 1, "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}}
    nulls = dict.fromkeys(("max_tokens", "seed", "stop", "logprobs", "stream", "suffix", "top_p"))
    body = says.complete("hello", **neutral, **nulls, echo=False, user="someone").json()
    assert body["choices"][0]["text"] == "abc"


def test_the_one_model_is_listed(service):
    (model,) = service.client.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"], model["lock"]) == ("tiny", 512, "ab" * 32)


def test_health_tells_what_runs(service):
    body = service.client.get("/health").json()
    assert (body["status"], body["runner"]["name"], body["lock"]) == ("ok", "scripted", "ab" * 32)


def test_metrics_count_tokens_streams_and_responses(service):
    from prometheus_client.parser import text_string_to_metric_families

    service.complete("hello", max_tokens=3)
    service.client.get("/nowhere")
    response = service.client.get("/metrics")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples[("leanserve_generated_tokens_total",)] == 3
    assert samples[("leanserve_prompt_tokens_total",)] == 5
    assert samples[("leanserve_streams_total", "length")] == 1
    assert samples[("leanserve_responses_total", "/v1/completions", "200")] == 1
    assert samples[("leanserve_responses_total", "404", "other")] == 1
    assert samples[("leanserve_first_token_seconds_count",)] == 1
    assert samples[("leanserve_ready",)] == 1


def test_metrics_without_their_library_are_an_api_error_that_names_it(service, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    response = service.client.get("/metrics")
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (
        501,
        "server_error",
        "metrics_unavailable",
    )
    assert "prometheus_client is missing" in error["message"]
    assert "pip install prometheus-client" in error["message"]
    assert service.complete("hello", max_tokens=3).status_code == 200
